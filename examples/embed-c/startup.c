/* What a vendor's start-up file does, for QEMU's mps2-an500 with newlib's semihosting (printf, exit). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint32_t stack_top[], data_load[], data_start[], data_end[], bss_start[], bss_end[];
extern void initialise_monitor_handles(void);
extern int main(void);

static void reset(void) {
    /* The floating-point unit: output_scale is a double, and the hard-float ABI passes it in a register. */
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20;
    __asm volatile("dsb\n isb");
    memcpy(data_start, data_load, (size_t)((char *)data_end - (char *)data_start));
    memset(bss_start, 0, (size_t)((char *)bss_end - (char *)bss_start));
    initialise_monitor_handles();
    exit(main());
}

/* A fault ends the emulator with a status that is not 0. */
static void fault(void) { abort(); }

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    stack_top, reset, fault, fault, fault, fault, fault,
};
