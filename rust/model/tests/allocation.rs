//! A batch allocates for its threads, never for its images.

mod common;

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use cbin_nn_model::batch::OwnedModel;
use cbin_nn_model::format::{DType, Layout};
use common::small_model;

/// The system's allocator, which counts.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: MemoryLayout) {
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test in this file: another one beside it would be counted, too.
#[test]
fn a_longer_batch_allocates_no_more() {
    let model = OwnedModel::new(&small_model(1, Layout::ByteMask, DType::I32)).unwrap();
    let longest = if cfg!(miri) { 8 } else { 2000 };
    let images = vec![7u8; longest * model.view().input_bytes()];
    let mut outputs = vec![0u32; longest * model.view().output_bytes() / 4];
    let mut allocations = |count: usize, threads: usize| {
        let images = &images[..count * model.view().input_bytes()];
        let outputs = bytemuck::cast_slice_mut(&mut outputs[..count * model.view().output_bytes() / 4]);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        model.run_batch(images, outputs, threads).unwrap();
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    // The fewest of some tries: the test harness has a thread of its own, which allocates when it likes.
    let mut fewest = |count: usize| (0..if cfg!(miri) { 1 } else { 4 }).map(|_| allocations(count, 1)).min();
    assert_eq!(fewest(longest), fewest(2));
    if cfg!(miri) {
        return;
    }
    // rayon allocates for a job, and its threads when they start: a few allocations, however many images.
    allocations(8, 3);
    let (short, long) = (allocations(8, 3), allocations(longest, 3));
    assert!(long <= short + 20, "{short} allocations for 8 images, {long} for {longest}");
}
