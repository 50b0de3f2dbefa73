/* The files as they are, in flash; MODEL and IMAGES are their paths, from the Makefile. A model begins at a multiple of 16; an 8-bit image may begin anywhere. */
    .section .rodata.assets, "a"

    .balign 16
    .global model_bytes, model_end
model_bytes:
    .incbin MODEL
model_end:

    .balign 4
    .global images, images_end
images:
    .incbin IMAGES
images_end:
