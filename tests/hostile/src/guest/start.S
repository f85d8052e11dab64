/* SPDX-License-Identifier: GPL-2.0
 *
 * The way into snippets and back. AT&T syntax.
 *
 * Everything that must run below 64 KiB, where real mode reaches it, is in the section .low; the guest copies it there
 * before each snippet that leaves IA-32e mode, since such a snippet may have written over it.
 */

.set CODE64, 0x08
.set FLAT, 0x10
.set CODE32, 0x18
.set USER_DATA, 0x2b
.set TSS64, 0x70
.set TSS32, 0x80
.set LOW_CODE, 0x88
.set LOW_DATA, 0x90
.set MSR_EFER, 0xc0000080

/* ---- start ------------------------------------------------------------------------------------------------------ */

.section .text.entry, "ax"
.code64
/* Linux' 64-bit boot protocol: RSI is the zero page. */
.globl _start
_start:
    cli
    cld
    movl 0x228(%rsi), %edi          /* hdr.cmd_line_ptr */
1:  movl $stack_end, %esp
    call hostile_main
2:  cli
    hlt
    jmp 2b

/* The PVH protocol, for emulators that load kernels themselves: EBX is hvm_start_info. */
.code32
pvh_start:
    cli
    cld
    movl 24(%ebx), %edi             /* cmdline_paddr */
    movl $early_pdpt + 7, early_pml4
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $early_pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000001, %eax
    movl %eax, %cr0
    lgdt early_gdt_pointer
    ljmpl $8, $pvh_long
.code64
pvh_long:
    movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %edi, %edi
    jmp 1b

.section .note.pvh, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

.section .data
.balign 4096
early_pml4: .fill 512, 8, 0
early_pdpt:
    .quad 0x83, 0x40000083, 0x80000083, 0xc0000083
    .fill 508, 8, 0
early_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
early_gdt_pointer: .word 23
    .quad early_gdt

/* ---- memory, which no C library is there for -------------------------------------------------------------------- */

.section .text
.globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
.globl memmove
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    cmpq %rsi, %rdi
    jbe 1f
    leaq -1(%rdi,%rcx), %rdi
    leaq -1(%rsi,%rcx), %rsi
    std
1:  rep movsb
    cld
    ret
.globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
.globl bcmp
.globl memcmp
bcmp:
memcmp:
    movq %rdx, %rcx
    xorl %eax, %eax
    cmpq %rcx, %rcx                 /* ZF, for no bytes at all */
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    subl %eax, %ecx
    movl %ecx, %eax
    neg %eax
    neg %eax
1:  ret

/* ---- single instructions ---------------------------------------------------------------------------------------- */

/* hostile_out(port, value), hostile_in(port): bytes. */
.globl hostile_out
hostile_out:
    movl %edi, %edx
    movl %esi, %eax
    outb %al, %dx
    ret
.globl hostile_in
hostile_in:
    movl %edi, %edx
    xorl %eax, %eax
    inb %dx, %al
    ret
/* hostile_rdmsr(index), hostile_wrmsr(index, value) */
.globl hostile_rdmsr
hostile_rdmsr:
    movl %edi, %ecx
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    ret
.globl hostile_wrmsr
hostile_wrmsr:
    movl %edi, %ecx
    movl %esi, %eax
    movq %rsi, %rdx
    shrq $32, %rdx
    wrmsr
    ret
/* hostile_features(): EDX of CPUID leaf 1 */
.globl hostile_features
hostile_features:
    pushq %rbx
    movl $1, %eax
    cpuid
    movl %edx, %eax
    popq %rbx
    ret
/* hostile_clear_debug() */
.globl hostile_clear_debug
hostile_clear_debug:
    xorl %eax, %eax
    movq %rax, %dr7
    movq %rax, %dr7                 /* the first may have met general detect, whose handler goes on */
    ret

/* hostile_load_tables(cr3): from now on with the guest's own tables. */
.globl hostile_load_tables
hostile_load_tables:
    movq %rdi, good_cr3
    movq %rdi, %cr3
    movq %cr0, %rax
    andq $~0x6000000c, %rax         /* CD NW TS EM */
    orq $0x10022, %rax              /* WP NE MP */
    movq %rax, good_cr0
    movq %rax, %cr0
    movl $0x6a0, %eax               /* PAE PGE OSFXSR OSXMMEXCPT */
    movq %rax, good_cr4
    movq %rax, %cr4
    lgdt good_gdt
    lidt good_idt
    pushq $CODE64
    pushq $1f
    lretq
1:  movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $TSS64, %eax
    ltr %ax
    movl $MSR_EFER, %ecx
    rdmsr
    andl $0x900, %eax
    orl $0x101, %eax                /* LME SCE */
    movl %eax, good_efer
    wrmsr
    ret

/* ---- into a snippet --------------------------------------------------------------------------------------------- */

.macro save
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, saved_rsp
    movb $1, in_snippet
.endm

/* hostile_enter(frame) -> vector: the frame holds R15 to RAX without RSP, then what IRETQ takes. */
.globl hostile_enter
hostile_enter:
    save
    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movq %rdi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    iretq

/* hostile_enter_legacy() -> vector: as `low_parameters` say. */
.globl hostile_enter_legacy
hostile_enter_legacy:
    save
    pushq $CODE32
    pushq $low_enter
    lretq

/* ---- back from a snippet ---------------------------------------------------------------------------------------- */

/* Each of the 256 vectors of IA-32e mode: error code (or 0), vector, then on. */
.balign 16
.globl hostile_vectors
hostile_vectors:
    .set vector, 0
.rept 256
    .balign 16
    .if !((vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    pushq $0
    .endif
    pushq $vector
    jmp from_long
    .set vector, vector + 1
.endr

/* On the interrupt stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. */
from_long:
    cmpb $0, in_snippet
    je 3f
    cmpl $0, resumes
    je 1f
    cmpq $1, (%rsp)
    je 2f
    cmpq $2, (%rsp)
    je 2f
    cmpq $32, (%rsp)
    jae 2f
1:  pushq 16(%rsp)
    popq last_rip
    popq last_vector
    jmp recover
2:  decl resumes
    pushq %rax
    movb $0x20, %al
    outb %al, $0xa0
    outb %al, $0x20
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
3:  addq $16, %rsp
    iretq

/* 64-bit mode, CPL 0, with any registers: make everything as the guest had it, and return to it. */
.globl recover
recover:
    cld
    movb $0, in_snippet
    movq good_cr0, %rax
    movq %rax, %cr0
    movq good_cr4, %rax
    movq %rax, %cr4
    movq good_cr3, %rax
    movq %rax, %cr3
    lgdt good_gdt
    lidt good_idt
    movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    lldt %ax
    andb $~2, hostile_gdt + TSS64 + 5
    movl $TSS64, %eax
    ltr %ax
    movq saved_rsp, %rsp
    /* IRET also ends the blocking of NMIs. */
    movq %rsp, %rax
    pushq $FLAT
    pushq %rax
    pushq $2
    pushq $CODE64
    pushq $1f
    iretq
1:  popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    movq last_vector, %rax
    ret

/* ---- other modes ------------------------------------------------------------------------------------------------ */

.section .low, "awx"
.code32
low_enter:
    movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $MSR_EFER, %ecx
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    movl low_cr4, %eax
    movl %eax, %cr4
    movl low_cr3, %eax
    movl %eax, %cr3
    andb $~2, hostile_gdt + TSS32 + 5
    movl $TSS32, %eax
    ltr %ax
    cmpb $0, low_is_real
    jne low_to_real
    movl low_cr0, %eax
    movl %eax, %cr0
    lidt low_idt
    movl low_data, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $FLAT, %ecx
    movl %ecx, %fs
    movl %eax, %gs
    lssl %cs:low_frame, %esp
    popal
    iretl

low_to_real:
    ljmpl $LOW_CODE, $low_16
.code16
low_16:
    movw $LOW_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    lidtl low_real_idt
    movl low_cr0, %eax
    movl %eax, %cr0
    ljmpw $0, $1f
1:  xorw %ax, %ax
    movw %ax, %ds
    lssw low_frame, %sp
    movw low_data, %ax
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ds
    popal
    iretw

/* The vectors of protected mode. */
.code32
.balign 16
.globl low_vectors
low_vectors:
    .set vector, 0
.rept 256
    .balign 16
    pushl $vector
    jmp from_protected
    .set vector, vector + 1
.endr
from_protected:
    popl %edi
1:  cli
    movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl %eax, %es
    movl %edi, last_vector
    movl $low_stack_end, %esp
from_protected_or_real:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl good_cr4, %eax
    movl %eax, %cr4
    movl good_cr3, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    movl good_efer, %eax
    xorl %edx, %edx
    wrmsr
    movl good_cr0, %eax
    movl %eax, %cr0
    lgdt good_gdt
    ljmpl $CODE64, $recover

/* The vectors of real mode. */
.code16
.balign 8
.globl low_real_vectors
low_real_vectors:
    .set vector, 0
.rept 256
    .balign 8
    pushw $vector
    jmp from_real
    .set vector, vector + 1
.endr
from_real:
    popw %di
    cli
    movzwl %di, %edi
    lgdtl %cs:low_gdt
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $1f
.code32
1:  movl $FLAT, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl %eax, %es
    movl %edi, last_vector
    movl $low_stack_end, %esp
    jmp from_protected_or_real

.balign 8
.globl low_parameters
low_parameters:
low_cr0: .quad 0
low_cr3: .quad 0
low_cr4: .quad 0
low_data: .quad 0
low_frame: .quad 0                  /* offset and selector of the frame */
low_is_real: .quad 0
low_idt: .word 0x7ff
    .long 0x610000
low_real_idt: .word 0x3ff
    .long 0
low_gdt: .word 0xff + 64
    .long hostile_gdt
low_stack: .fill 64, 1, 0
low_stack_end:

/* ---- data ------------------------------------------------------------------------------------------------------- */

.section .data
.balign 16
.globl hostile_gdt
hostile_gdt: .fill 40, 8, 0
good_gdt: .word 40 * 8 - 1
    .quad hostile_gdt
good_idt: .word 0xfff
    .quad 0x611000
.balign 8
good_cr0: .quad 0
good_cr3: .quad 0
good_cr4: .quad 0
good_efer: .quad 0
saved_rsp: .quad 0
.globl last_vector
last_vector: .quad 0
.globl last_rip
last_rip: .quad 0
.globl resumes
resumes: .quad 0
in_snippet: .quad 0

.section .bss
.balign 16
stack: .skip 65536
stack_end:
.balign 16
.globl interrupt_stack
    .skip 8192
interrupt_stack:
    .skip 8192
.globl nmi_stack
nmi_stack:
