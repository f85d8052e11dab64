// SPDX-License-Identifier: GPL-2.0
//! VM entry and exit: the few instructions during which the CPU holds the guest's registers.

use super::instructions::CurrentVmcs;
use super::vmcs::{HOST_RIP_ENCODING, HOST_RSP_ENCODING};
use core::arch::asm;

/// The general-purpose registers in the order of the instruction encoding; RSP's place is unused here, the VMCS has it.
pub(super) type GeneralRegisters = [u64; 16];

/// Enters the guest and comes back at its next exit.
///
/// Returns false if VMLAUNCH or VMRESUME failed; then no guest code ran and VM_INSTRUCTION_ERROR says why.
///
/// # Safety
///
/// The current VMCS's host-state fields, except RSP and RIP, describe this CPU as it runs now; its controls and bitmaps
/// let the guest reach nothing but its own memory and granted devices; interrupts are off; the guest's FPU state is
/// loaded. `launched` tells whether VMLAUNCH has been executed since the VMCS was cleared.
pub(super) unsafe fn enter(
    _current: &CurrentVmcs,
    registers: &mut GeneralRegisters,
    launched: bool,
) -> bool {
    let failed: u64;
    // RBX and RBP can't be operands and are saved on the stack. The exit label follows both instructions directly, so that
    // control flow falls into it as far as a static checker can see, and starts with ENDBR64 because its
    // address is taken. RBP goes to the stack and back through another register, because in a kernel with frame pointers that
    // checker takes a POP of RBP for the function's end.
    //
    // SAFETY: VM exit returns to label 5 with RSP as stored in the VMCS below, so the stack is as before the entry.
    // Every register that the guest changes is saved to `registers` and declared as clobbered; the caller answers for the
    // rest of the CPU's state.
    unsafe {
        asm!(
            "push rbx",
            "mov r8, rbp",
            "push r8",
            "push rcx",
            "vmwrite rax, rsp",
            "lea rbx, [rip + 5f]",
            "vmwrite rdi, rbx",
            "test dl, dl",
            "mov rax, [rcx]",
            "mov rdx, [rcx + 16]",
            "mov rbx, [rcx + 24]",
            "mov rbp, [rcx + 40]",
            "mov rsi, [rcx + 48]",
            "mov rdi, [rcx + 56]",
            "mov r8, [rcx + 64]",
            "mov r9, [rcx + 72]",
            "mov r10, [rcx + 80]",
            "mov r11, [rcx + 88]",
            "mov r12, [rcx + 96]",
            "mov r13, [rcx + 104]",
            "mov r14, [rcx + 112]",
            "mov r15, [rcx + 120]",
            "mov rcx, [rcx + 8]",
            "jnz 4f",
            "vmlaunch",
            "jbe 6f",
            "jmp 5f",
            "4:",
            "vmresume",
            "jbe 6f",
            "5:",
            "endbr64",
            "xchg rcx, [rsp]",
            "mov [rcx], rax",
            "mov [rcx + 16], rdx",
            "mov [rcx + 24], rbx",
            "mov [rcx + 40], rbp",
            "mov [rcx + 48], rsi",
            "mov [rcx + 56], rdi",
            "mov [rcx + 64], r8",
            "mov [rcx + 72], r9",
            "mov [rcx + 80], r10",
            "mov [rcx + 88], r11",
            "mov [rcx + 96], r12",
            "mov [rcx + 104], r13",
            "mov [rcx + 112], r14",
            "mov [rcx + 120], r15",
            "pop qword ptr [rcx + 8]",
            // No guest value stays in a register, where speculation could use it.
            "xor eax, eax",
            "jmp 7f",
            "6:",
            "pop rcx",
            "mov eax, 1",
            "7:",
            "xor edx, edx",
            "xor ebx, ebx",
            "xor ebp, ebp",
            "xor esi, esi",
            "xor edi, edi",
            "xor r8d, r8d",
            "xor r9d, r9d",
            "xor r10d, r10d",
            "xor r11d, r11d",
            "xor r12d, r12d",
            "xor r13d, r13d",
            "xor r14d, r14d",
            "xor r15d, r15d",
            "pop rdx",
            "mov rbp, rdx",
            "pop rbx",
            inout("rax") HOST_RSP_ENCODING => failed,
            inout("rcx") registers.as_mut_ptr() => _,
            inout("rdx") u64::from(launched) => _,
            out("rsi") _,
            inout("rdi") HOST_RIP_ENCODING => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    failed == 0
}
