//! Classifies images with a `.cbn` model: the output of each image, and its class, a line each.
#![no_std]
#![no_main]

use cbin_nn_model::format::DType;
use cbin_nn_model::{Model, NoObserver};
use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprint, hprintln};
use panic_semihosting as _;

/// Bytes at a multiple of 16, as a model wants them.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// The files as they are, in flash.
static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.cbn")));
static IMAGES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/images.bin"));

/// Words of arena and of output: as much as the largest model that this program is meant for.
const ARENA: usize = 4096;
const OUTPUT: usize = 64;

#[entry]
fn main() -> ! {
    classify();
    debug::exit(debug::EXIT_SUCCESS);
    loop {}
}

fn classify() {
    let model = Model::new_checked(&MODEL.0).expect("a .cbn file");
    let (mut arena, mut output) = ([0u32; ARENA], [0u32; OUTPUT]);
    assert!(model.arena_bytes() <= 4 * ARENA, "the model takes {} bytes of arena", model.arena_bytes());
    let output: &mut [u8] = bytemuck::cast_slice_mut(&mut output);
    let output = &mut output[..model.output_bytes()];
    for image in IMAGES.chunks_exact(model.input_bytes()) {
        model.run(image, output, &mut arena, &mut NoObserver).expect("slices of the right lengths");
        match model.output().dtype {
            DType::I8 => show(bytemuck::cast_slice::<u8, i8>(output)),
            DType::I16 => show(bytemuck::cast_slice::<u8, i16>(output)),
            _ => show(bytemuck::cast_slice::<u8, i32>(output)),
        }
    }
}

fn show<T: Copy + Ord + core::fmt::Display>(output: &[T]) {
    let mut best = 0;
    for (class, &value) in output.iter().enumerate() {
        hprint!("{} ", value);
        if value > output[best] {
            best = class;
        }
    }
    hprintln!("class {}", best);
}
