/* Classifies images with a .cbn model: the output of each image, and its class, a line each. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cbin_nn.h"

/* From assets.S. */
extern const uint8_t model_bytes[], model_end[], images[], images_end[];

/* As much as the largest model that this program is meant for. */
static uint32_t arena[16 * 1024 / sizeof(uint32_t)];
static uint32_t output[256 / sizeof(uint32_t)];

static int32_t element(const cbin_nn_model *model, size_t index) {
    switch (model->output_dtype) {
    case CBIN_NN_DTYPE_I8:
        return ((const int8_t *)output)[index];
    case CBIN_NN_DTYPE_I16:
        return ((const int16_t *)output)[index];
    default:
        return ((const int32_t *)output)[index];
    }
}

static int fail(const char *what, cbin_nn_status status) {
    printf("%s: %s\n", what, cbin_nn_status_text(status));
    return EXIT_FAILURE;
}

int main(void) {
    cbin_nn_model model;
    cbin_nn_status status = cbin_nn_open(&model, model_bytes, (size_t)(model_end - model_bytes));
    if (status != CBIN_NN_STATUS_OK)
        return fail("open", status);
    if (model.arena_bytes > sizeof arena || model.output_bytes > sizeof output) {
        printf("the model takes %u bytes of arena and %u of output: enlarge the arrays in main.c\n",
               (unsigned)model.arena_bytes, (unsigned)model.output_bytes);
        return EXIT_FAILURE;
    }
    for (const uint8_t *image = images; image + model.input_bytes <= images_end; image += model.input_bytes) {
        /* An 8-bit image may lie anywhere, flash included; a packed one has to lie at a multiple of 4. */
        status = cbin_nn_run(&model, image, model.input_bytes, output, model.output_bytes, arena, sizeof arena);
        if (status != CBIN_NN_STATUS_OK)
            return fail("run", status);
        size_t best = 0;
        for (size_t i = 0; i < model.output_shape[2]; i++) {
            printf("%" PRId32 " ", element(&model, i));
            if (element(&model, i) > element(&model, best))
                best = i;
        }
        printf("class %u\n", (unsigned)best);
    }
    return EXIT_SUCCESS;
}
