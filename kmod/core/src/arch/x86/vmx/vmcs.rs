// SPDX-License-Identifier: GPL-2.0
//! VMCS fields (SDM volume 3, appendix B) and the bits of the controls (25.6 to 25.8).

/// A VMCS field's encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field(pub u32);

macro_rules! fields {
    ($($name:ident = $encoding:literal),* $(,)?) => {
        $(
            #[doc = concat!("The field ", stringify!($name), ".")]
            pub(super) const $name: Field = Field($encoding);
        )*
    };
}

fields! {
    VIRTUAL_PROCESSOR_ID = 0x0000,
    GUEST_ES_SELECTOR = 0x0800,
    HOST_ES_SELECTOR = 0x0c00,
    HOST_CS_SELECTOR = 0x0c02,
    HOST_SS_SELECTOR = 0x0c04,
    HOST_DS_SELECTOR = 0x0c06,
    HOST_FS_SELECTOR = 0x0c08,
    HOST_GS_SELECTOR = 0x0c0a,
    HOST_TR_SELECTOR = 0x0c0c,
    GUEST_PML_INDEX = 0x0812,
    IO_BITMAP_A = 0x2000,
    IO_BITMAP_B = 0x2002,
    MSR_BITMAP = 0x2004,
    PML_ADDRESS = 0x200e,
    TSC_OFFSET = 0x2010,
    EPT_POINTER = 0x201a,
    TSC_MULTIPLIER = 0x2032,
    GUEST_PHYSICAL_ADDRESS = 0x2400,
    VMCS_LINK_POINTER = 0x2800,
    GUEST_DEBUGCTL = 0x2802,
    GUEST_PAT = 0x2804,
    GUEST_EFER = 0x2806,
    GUEST_PDPTE0 = 0x280a,
    HOST_PAT = 0x2c00,
    HOST_EFER = 0x2c02,
    PIN_BASED_CONTROLS = 0x4000,
    PROC_BASED_CONTROLS = 0x4002,
    EXCEPTION_BITMAP = 0x4004,
    PAGE_FAULT_ERROR_CODE_MASK = 0x4006,
    PAGE_FAULT_ERROR_CODE_MATCH = 0x4008,
    CR3_TARGET_COUNT = 0x400a,
    EXIT_CONTROLS = 0x400c,
    EXIT_MSR_STORE_COUNT = 0x400e,
    EXIT_MSR_LOAD_COUNT = 0x4010,
    ENTRY_CONTROLS = 0x4012,
    ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_INTERRUPTION_INFORMATION = 0x4016,
    ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
    ENTRY_INSTRUCTION_LENGTH = 0x401a,
    SECONDARY_CONTROLS = 0x401e,
    VM_INSTRUCTION_ERROR = 0x4400,
    EXIT_REASON = 0x4402,
    EXIT_INTERRUPTION_INFORMATION = 0x4404,
    EXIT_INTERRUPTION_ERROR_CODE = 0x4406,
    IDT_VECTORING_INFORMATION = 0x4408,
    IDT_VECTORING_ERROR_CODE = 0x440a,
    EXIT_INSTRUCTION_LENGTH = 0x440c,
    EXIT_INSTRUCTION_INFORMATION = 0x440e,
    GUEST_ES_LIMIT = 0x4800,
    GUEST_GDTR_LIMIT = 0x4810,
    GUEST_IDTR_LIMIT = 0x4812,
    GUEST_ES_ACCESS_RIGHTS = 0x4814,
    GUEST_INTERRUPTIBILITY = 0x4824,
    GUEST_ACTIVITY = 0x4826,
    GUEST_SYSENTER_CS = 0x482a,
    PREEMPTION_TIMER_VALUE = 0x482e,
    HOST_SYSENTER_CS = 0x4c00,
    CR0_GUEST_HOST_MASK = 0x6000,
    CR4_GUEST_HOST_MASK = 0x6002,
    CR0_READ_SHADOW = 0x6004,
    CR4_READ_SHADOW = 0x6006,
    EXIT_QUALIFICATION = 0x6400,
    GUEST_LINEAR_ADDRESS = 0x640a,
    GUEST_CR0 = 0x6800,
    GUEST_CR3 = 0x6802,
    GUEST_CR4 = 0x6804,
    GUEST_ES_BASE = 0x6806,
    GUEST_FS_BASE = 0x680e,
    GUEST_GS_BASE = 0x6810,
    GUEST_GDTR_BASE = 0x6816,
    GUEST_IDTR_BASE = 0x6818,
    GUEST_DR7 = 0x681a,
    GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e,
    GUEST_RFLAGS = 0x6820,
    GUEST_PENDING_DEBUG = 0x6822,
    GUEST_SYSENTER_ESP = 0x6824,
    GUEST_SYSENTER_EIP = 0x6826,
    HOST_CR0 = 0x6c00,
    HOST_CR3 = 0x6c02,
    HOST_CR4 = 0x6c04,
    HOST_FS_BASE = 0x6c06,
    HOST_GS_BASE = 0x6c08,
    HOST_TR_BASE = 0x6c0a,
    HOST_GDTR_BASE = 0x6c0c,
    HOST_IDTR_BASE = 0x6c0e,
    HOST_SYSENTER_ESP = 0x6c10,
    HOST_SYSENTER_EIP = 0x6c12,
}

impl Field {
    /// The field `index` places further in a run of alike fields, such as the segments ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub(super) const fn at(self, index: u32) -> Self {
        Self(self.0 + 2 * index)
    }
}

/// Host RSP and RIP are written by the entry code itself.
pub(super) const HOST_RSP_ENCODING: u64 = 0x6c14;
/// See [`HOST_RSP_ENCODING`].
pub(super) const HOST_RIP_ENCODING: u64 = 0x6c16;

/// Pin-based control: external interrupts exit.
pub(super) const PIN_EXTERNAL_INTERRUPT: u32 = 1 << 0;
/// Pin-based control: NMIs exit.
pub(super) const PIN_NMI: u32 = 1 << 3;
/// Pin-based control: virtual NMIs.
pub(super) const PIN_VIRTUAL_NMI: u32 = 1 << 5;
/// Pin-based control: the preemption timer runs.
pub(super) const PIN_PREEMPTION_TIMER: u32 = 1 << 6;

/// Processor-based control: exit when interrupts can be delivered.
pub(super) const PROC_INTERRUPT_WINDOW: u32 = 1 << 2;
/// Processor-based control: TSC offsetting.
pub(super) const PROC_TSC_OFFSETTING: u32 = 1 << 3;
/// Processor-based control: HLT exits.
pub(super) const PROC_HLT: u32 = 1 << 7;
/// Processor-based control: MWAIT exits.
pub(super) const PROC_MWAIT: u32 = 1 << 10;
/// Processor-based control: RDPMC exits.
pub(super) const PROC_RDPMC: u32 = 1 << 11;
/// Processor-based control: loads of CR3 exit. Forced on by CPUs without the "true" controls only.
pub(super) const PROC_CR3_LOAD: u32 = 1 << 15;
/// Processor-based control: stores of CR3 exit.
pub(super) const PROC_CR3_STORE: u32 = 1 << 16;
/// Processor-based control: loads of CR8 exit.
pub(super) const PROC_CR8_LOAD: u32 = 1 << 19;
/// Processor-based control: stores of CR8 exit.
pub(super) const PROC_CR8_STORE: u32 = 1 << 20;
/// Processor-based control: exit when NMIs can be delivered.
pub(super) const PROC_NMI_WINDOW: u32 = 1 << 22;
/// Processor-based control: MOV DR exits.
pub(super) const PROC_MOV_DR: u32 = 1 << 23;
/// Processor-based control: I/O bitmaps.
pub(super) const PROC_IO_BITMAPS: u32 = 1 << 25;
/// Processor-based control: MSR bitmap.
pub(super) const PROC_MSR_BITMAP: u32 = 1 << 28;
/// Processor-based control: MONITOR exits.
pub(super) const PROC_MONITOR: u32 = 1 << 29;
/// Processor-based control: the secondary controls are active.
pub(super) const PROC_SECONDARY: u32 = 1 << 31;

/// Secondary control: EPT.
pub(super) const SECONDARY_EPT: u32 = 1 << 1;
/// Secondary control: RDTSCP works in the guest.
pub(super) const SECONDARY_RDTSCP: u32 = 1 << 3;
/// Secondary control: VPID.
pub(super) const SECONDARY_VPID: u32 = 1 << 5;
/// Secondary control: WBINVD exits.
pub(super) const SECONDARY_WBINVD: u32 = 1 << 6;
/// Secondary control: unrestricted guest.
pub(super) const SECONDARY_UNRESTRICTED: u32 = 1 << 7;
/// Secondary control: INVPCID works in the guest.
pub(super) const SECONDARY_INVPCID: u32 = 1 << 12;
/// Secondary control: page-modification logging.
pub(super) const SECONDARY_PML: u32 = 1 << 17;
/// Secondary control: TSC scaling.
pub(super) const SECONDARY_TSC_SCALING: u32 = 1 << 25;

/// Exit control: save debug controls.
pub(super) const EXIT_SAVE_DEBUG: u32 = 1 << 2;
/// Exit control: the host is in 64-bit mode.
pub(super) const EXIT_HOST_64: u32 = 1 << 9;
/// Exit control: save IA32_PAT.
pub(super) const EXIT_SAVE_PAT: u32 = 1 << 18;
/// Exit control: load IA32_PAT.
pub(super) const EXIT_LOAD_PAT: u32 = 1 << 19;
/// Exit control: save IA32_EFER.
pub(super) const EXIT_SAVE_EFER: u32 = 1 << 20;
/// Exit control: load IA32_EFER.
pub(super) const EXIT_LOAD_EFER: u32 = 1 << 21;

/// Entry control: load debug controls.
pub(super) const ENTRY_LOAD_DEBUG: u32 = 1 << 2;
/// Entry control: the guest is in IA-32e mode.
pub(super) const ENTRY_IA32E: u32 = 1 << 9;
/// Entry control: load IA32_PAT.
pub(super) const ENTRY_LOAD_PAT: u32 = 1 << 14;
/// Entry control: load IA32_EFER.
pub(super) const ENTRY_LOAD_EFER: u32 = 1 << 15;

/// Interruption information: the event is valid.
pub(super) const EVENT_VALID: u32 = 1 << 31;
/// Interruption information: an error code is delivered.
pub(super) const EVENT_ERROR_CODE: u32 = 1 << 11;
/// Interruption information of an exit: an IRET had unblocked NMIs.
pub(super) const EVENT_NMI_UNBLOCKING: u32 = 1 << 12;
/// Pending debug exceptions: a single step.
pub(super) const PENDING_BS: u64 = 1 << 14;
/// Interruption information, type: external interrupt.
pub(super) const EVENT_EXTERNAL_INTERRUPT: u32 = 0 << 8;
/// Interruption information, type: NMI.
pub(super) const EVENT_NMI: u32 = 2 << 8;
/// Interruption information, type: hardware exception.
pub(super) const EVENT_HARDWARE_EXCEPTION: u32 = 3 << 8;
/// Interruption information: mask of the type.
pub(super) const EVENT_TYPE: u32 = 7 << 8;
