// SPDX-License-Identifier: GPL-2.0
//! Declarations of `shim.c`.

use core::ffi::c_void;

/// `bool (*ready)(void *)` of `pvmm_wait`.
pub(crate) type Ready = unsafe extern "C" fn(*mut c_void) -> bool;
/// `irq_handler_t`, whose result is an enumeration of C.
pub(crate) type IrqHandler = unsafe extern "C" fn(i32, *mut c_void) -> u32;

extern "C" {
    pub(crate) fn pvmm_irq_save() -> usize;
    pub(crate) fn pvmm_irq_restore(flags: usize);
    pub(crate) fn pvmm_work_pending() -> bool;
    pub(crate) fn pvmm_signal_pending() -> bool;
    pub(crate) fn pvmm_cond_resched();
    pub(crate) fn pvmm_kick(cpu: u32);
    pub(crate) fn pvmm_current_cpu() -> u32;
    pub(crate) fn pvmm_online_cpus() -> u32;
    pub(crate) fn pvmm_possible_cpus() -> u32;
    pub(crate) fn pvmm_on_each_cpu(
        function: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    );
    pub(crate) fn pvmm_deliver_nmi();
    pub(crate) fn pvmm_fpu_begin();
    pub(crate) fn pvmm_fpu_end();
    pub(crate) fn pvmm_tss_limit_is_invalid();
    pub(crate) fn pvmm_tsc_khz() -> u32;
    pub(crate) fn pvmm_tsc_is_stable() -> bool;
    pub(crate) fn pvmm_delay_ns(ns: u64);
    pub(crate) fn pvmm_page_alloc(phys: *mut u64) -> *mut c_void;
    pub(crate) fn pvmm_page_free(phys: u64);
    pub(crate) fn pvmm_page_at(phys: u64) -> *mut c_void;
    pub(crate) fn pvmm_mm_grab() -> *mut c_void;
    pub(crate) fn pvmm_mm_drop(mm: *mut c_void);
    pub(crate) fn pvmm_mm_is_current(mm: *mut c_void) -> bool;
    pub(crate) fn pvmm_resolve(address: usize, write: bool, pfn: *mut u64) -> i32;
    pub(crate) fn pvmm_copy_in(to: *mut c_void, from: u64, count: usize) -> usize;
    pub(crate) fn pvmm_copy_out(to: u64, from: *const c_void, count: usize) -> usize;
    pub(crate) fn pvmm_wait_queue_alloc() -> *mut c_void;
    pub(crate) fn pvmm_wait_queue_free(queue: *mut c_void);
    pub(crate) fn pvmm_wait(
        queue: *mut c_void,
        timeout_ns: i64,
        ready: Ready,
        context: *mut c_void,
    ) -> i32;
    pub(crate) fn pvmm_wake(queue: *mut c_void);
    pub(crate) fn pvmm_claim_ports(base: u16, count: u16) -> *mut c_void;
    pub(crate) fn pvmm_release_ports(base: u16, count: u16);
    pub(crate) fn pvmm_port_in(port: u16, bytes: u8) -> u32;
    pub(crate) fn pvmm_port_out(port: u16, bytes: u8, value: u32);
    pub(crate) fn pvmm_claim_irq(irq: u32, handler: IrqHandler, context: *mut c_void) -> i32;
    pub(crate) fn pvmm_release_irq(irq: u32, context: *mut c_void);
    pub(crate) fn pvmm_user_map(pages: usize) -> usize;
    pub(crate) fn pvmm_user_unmap(at: usize, pages: usize);
}
