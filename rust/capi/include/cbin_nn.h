#ifndef CBIN_NN_H
#define CBIN_NN_H

/* Written by cbindgen from rust/capi/src/lib.rs. Do not edit: run `make capi-header`. */

#include <stddef.h>
#include <stdint.h>

/**
 * What a call came to. `CBIN_NN_STATUS_OK` is 0; `cbin_nn_status_text` says each in words.
 */
enum cbin_nn_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  CBIN_NN_STATUS_OK = 0,
  /**
   * The model's bytes do not begin at a multiple of 16.
   */
  CBIN_NN_STATUS_MISALIGNED = 1,
  /**
   * The bytes end inside the file's header.
   */
  CBIN_NN_STATUS_TOO_SHORT = 2,
  /**
   * Not a .cbn file.
   */
  CBIN_NN_STATUS_BAD_MAGIC = 3,
  /**
   * A .cbn file of a version that this library does not read.
   */
  CBIN_NN_STATUS_UNSUPPORTED_VERSION = 4,
  /**
   * The bytes are fewer or more than the file's header says.
   */
  CBIN_NN_STATUS_WRONG_LENGTH = 5,
  /**
   * The bytes were changed or damaged after the file was written.
   */
  CBIN_NN_STATUS_BAD_CHECKSUM = 6,
  /**
   * A field of the header is wrong.
   */
  CBIN_NN_STATUS_BAD_HEADER = 7,
  /**
   * A tensor of the file is wrong.
   */
  CBIN_NN_STATUS_BAD_TENSOR = 8,
  /**
   * An operator of the file is wrong.
   */
  CBIN_NN_STATUS_BAD_OPERATOR = 9,
  /**
   * An operator's shapes or parameters do not fit together.
   */
  CBIN_NN_STATUS_BAD_ARGUMENT = 10,
  /**
   * Tensors that live at the same time share bytes of the arena.
   */
  CBIN_NN_STATUS_ARENA_OVERLAP = 11,
  /**
   * A pointer is NULL.
   */
  CBIN_NN_STATUS_NULL = 32,
  /**
   * A length is not the model's: `input_bytes`, `output_bytes`, or less than `arena_bytes` or `in_place_bytes`.
   */
  CBIN_NN_STATUS_LENGTH = 33,
  /**
   * Input, output or arena is not aligned to its elements.
   */
  CBIN_NN_STATUS_ALIGNMENT = 34,
  /**
   * Two of input, output, arena and model share memory.
   */
  CBIN_NN_STATUS_OVERLAP = 35,
  /**
   * The model's bytes changed after they were checked.
   */
  CBIN_NN_STATUS_CHANGED = 36,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum cbin_nn_status cbin_nn_status;
#else
typedef int32_t cbin_nn_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Type of the elements of a tensor.
 */
enum cbin_nn_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Packed signs: 32 channels to a uint32_t, least significant bit first, 1 is +1.
   */
  CBIN_NN_DTYPE_BITS = 0,
  /**
   * uint8_t.
   */
  CBIN_NN_DTYPE_U8 = 1,
  /**
   * int8_t.
   */
  CBIN_NN_DTYPE_I8 = 2,
  /**
   * int16_t.
   */
  CBIN_NN_DTYPE_I16 = 3,
  /**
   * int32_t.
   */
  CBIN_NN_DTYPE_I32 = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum cbin_nn_dtype cbin_nn_dtype;
#else
typedef int32_t cbin_nn_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A checked model. `cbin_nn_open` fills it in; read the fields, write none.
 */
typedef struct {
  /**
   * The bytes of the .cbn file; they must stay where they are, unchanged.
   */
  const uint8_t *bytes;
  /**
   * Their number.
   */
  size_t length;
  /**
   * Bytes of one input image.
   */
  size_t input_bytes;
  /**
   * Bytes of one output.
   */
  size_t output_bytes;
  /**
   * Bytes of arena that a run needs, scratch included; a multiple of 4.
   */
  size_t arena_bytes;
  /**
   * Bytes of memory that `cbin_nn_run_in_place` needs, image and arena in one, a multiple of 4; 0 for a model that can't
   * run so.
   */
  size_t in_place_bytes;
  /**
   * Where in that memory the image begins, bytes.
   */
  size_t image_offset;
  /**
   * Height, width and channels of the input.
   */
  uint32_t input_shape[3];
  /**
   * Type of the input's elements.
   */
  cbin_nn_dtype input_dtype;
  /**
   * Height, width and channels of the output; a classifier's are 1, 1 and the number of classes.
   */
  uint32_t output_shape[3];
  /**
   * Type of the output's elements.
   */
  cbin_nn_dtype output_dtype;
  /**
   * One step of the output in the source network's units: its logit is output_scale * output.
   */
  double output_scale;
} cbin_nn_model;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Checks `length` bytes at `bytes`, the whole of a .cbn file at a 16-byte boundary (in flash, say), as hostile
 * input, and fills in `model`. The bytes must stay where they are, unchanged, as long as the model is used.
 *
 * On any other status than CBIN_NN_STATUS_OK, `model` is left as it was.
 *
 * # Safety
 *
 * `bytes` points to `length` bytes and `model` to a model, or either is NULL.
 */
cbin_nn_status cbin_nn_open(cbin_nn_model *model,
                            const void *bytes,
                            size_t length);

/**
 * Runs the model on one image: `input_bytes` bytes at `input` (uint8_t, height x width x channels), `output_bytes`
 * at `output`, and at least `arena_bytes` at `arena`, aligned to their element types (the arena to 4). What
 * output and arena held before does not matter. On any other status than CBIN_NN_STATUS_OK, and save for
 * CBIN_NN_STATUS_CHANGED, nothing was written.
 *
 * # Safety
 *
 * `model` was filled in by `cbin_nn_open` and its bytes are unchanged; each other pointer points to as many bytes
 * as the argument after it says. Or any pointer is NULL.
 */
cbin_nn_status cbin_nn_run(const cbin_nn_model *model,
                           const void *input,
                           size_t input_bytes,
                           void *output,
                           size_t output_bytes,
                           void *arena,
                           size_t arena_bytes);

/**
 * Runs the model on the image that begins at byte `image_offset` of `memory`, and writes over it: rows of the first
 * activation take the place of rows of the image that are done with. So an image needs no memory beside the arena.
 * `memory` has at least `in_place_bytes` bytes and is aligned to 4; the rest is as for `cbin_nn_run`. A model whose
 * `in_place_bytes` is 0 can't run so: CBIN_NN_STATUS_LENGTH.
 *
 * # Safety
 *
 * As for `cbin_nn_run`.
 */
cbin_nn_status cbin_nn_run_in_place(const cbin_nn_model *model,
                                    void *memory,
                                    size_t memory_bytes,
                                    void *output,
                                    size_t output_bytes);

/**
 * A status in words, with what to do: a string that ends in 0 and lives for ever.
 */
const char *cbin_nn_status_text(int32_t status);

/**
 * Version of the library, for instance "0.1.0".
 */
const char *cbin_nn_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CBIN_NN_H */
