//! Critical sections that need nothing.
//!
//! The only interrupt that a board ever takes is its start-up's deadline, whose handler does not return
//! and uses the up channel alone, whose ring is consistent between any two instructions of its owner.
//! So no code can find another's work half done, and a critical section has nothing to keep out. That
//! it masks nothing is the point: a deadline must fire in a hardware library's critical sections too.

struct Alone;

critical_section::set_impl!(Alone);

// SAFETY: one core; the only handler never returns to what it interrupted (above).
unsafe impl critical_section::Impl for Alone {
    unsafe fn acquire() -> critical_section::RawRestoreState {}

    unsafe fn release(_: critical_section::RawRestoreState) {}
}
