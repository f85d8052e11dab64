// SPDX-License-Identifier: GPL-2.0
//! A vCPU: its CPUID table and its architectural state, and the state of the APICs.

/// Argument of [`crate::CREATE_VCPU`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateVcpu {
    /// The vCPU's number, which is also its APIC id. Below [`crate::MAX_VCPUS`].
    pub vcpu: u32,
    /// Zero.
    pub reserved: u32,
}

/// Highest number of entries in a CPUID table.
pub const MAX_CPUID_ENTRIES: u32 = 80;

/// [`CpuidEntry::flags`]: the leaf has subleaves, and `subleaf` is significant.
pub const CPUID_SUBLEAF: u32 = 1 << 0;

/// One CPUID (sub)leaf.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, if [`CPUID_SUBLEAF`] is set.
    pub subleaf: u32,
    /// `CPUID_*` bits.
    pub flags: u32,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// Zero.
    pub reserved: u32,
}

/// Argument of [`crate::GET_SUPPORTED_CPUID`] and [`crate::SET_CPUID`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuidTable {
    /// User address of an array of [`CpuidEntry`].
    pub entries: u64,
    /// Get, in: room in the array; out: entries written. Set, in: entries to take.
    pub count: u32,
    /// Set: which vCPU.
    pub vcpu: u32,
    /// Set, out, when refused: index of the entry that this host cannot provide.
    pub refused_entry: u32,
    /// Set, out, when refused: the register of that entry, 0 EAX to 3 EDX.
    pub refused_register: u32,
    /// Set, out, when refused: the bits that are too many, or the value that the host has.
    pub refused_bits: u32,
    /// Zero.
    pub reserved: u32,
}

/// Argument of [`crate::GET_VCPU_STATE`] and [`crate::SET_VCPU_STATE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuStateRequest {
    /// User address of a [`VcpuState`].
    pub state: u64,
    /// Which vCPU.
    pub vcpu: u32,
    /// `size_of::<VcpuState>()`, checked.
    pub size: u32,
}

/// A segment register, in the layout of the VMCS (SDM volume 3, 26.4.1).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights; bit 16 is "unusable" (SDM volume 3, table 26-2).
    pub access_rights: u32,
    /// Selector.
    pub selector: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Zero.
    pub reserved: u32,
}

/// Number of [`MsrEntry`] places in a [`VcpuState`].
pub const MAX_MSRS: usize = 64;
/// Size of the XSAVE image in a [`VcpuState`]: the standard format up to AVX-512 and PKRU.
pub const XSAVE_SIZE: usize = 2816;

/// One MSR.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MsrEntry {
    /// ECX of RDMSR.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// The value.
    pub value: u64,
}

/// [`VcpuState::activity`]: executing instructions.
pub const ACTIVITY_ACTIVE: u32 = 0;
/// [`VcpuState::activity`]: halted by HLT.
pub const ACTIVITY_HLT: u32 = 1;
/// [`VcpuState::activity`]: waiting for a start-up IPI.
pub const ACTIVITY_WAIT_FOR_SIPI: u32 = 2;

/// [`VcpuState::interruptibility`]: blocking by STI.
pub const BLOCKING_BY_STI: u32 = 1 << 0;
/// [`VcpuState::interruptibility`]: blocking by MOV SS.
pub const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
/// [`VcpuState::interruptibility`]: blocking by NMI.
pub const BLOCKING_BY_NMI: u32 = 1 << 3;

/// The architectural state of a vCPU between two instructions.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of the instruction encoding.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8 (the task-priority class).
    pub cr8: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Event that was being delivered, as VM-entry interruption-information (SDM volume 3, 26.8.3); bit 31 is "valid".
    pub event: u32,
    /// Its error code.
    pub event_error_code: u32,
    /// Its instruction length, for software events.
    pub event_instruction_length: u32,
    /// `BLOCKING_BY_*` bits.
    pub interruptibility: u32,
    /// `ACTIVITY_*`.
    pub activity: u32,
    /// 1 if an NMI is pending.
    pub nmi_pending: u32,
    /// Pending debug exceptions (SDM volume 3, table 26-4).
    pub pending_debug: u64,
    /// Number of valid entries of `msrs`.
    pub msr_count: u32,
    /// Zero.
    pub reserved: u32,
    /// MSRs with state beyond the fields above.
    pub msrs: [MsrEntry; MAX_MSRS],
    /// The local APIC; zero in a VM without.
    pub apic: LocalApicState,
    /// The extended state in XSAVE's standard format.
    pub xsave: [u8; XSAVE_SIZE],
}

impl Default for VcpuState {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: 0,
            xcr0: 1,
            segments: [Segment::default(); 8],
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            event: 0,
            event_error_code: 0,
            event_instruction_length: 0,
            interruptibility: 0,
            activity: ACTIVITY_ACTIVE,
            nmi_pending: 0,
            pending_debug: 0,
            msr_count: 0,
            reserved: 0,
            msrs: [MsrEntry::default(); MAX_MSRS],
            apic: LocalApicState::default(),
            xsave: [0; XSAVE_SIZE],
        }
    }
}

/// A local APIC.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalApicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub tsc_deadline: u64,
    /// VM nanoseconds at which the current count in `registers` was the count.
    pub timer_start_ns: u64,
    /// The registers at offsets 0h, 10h, ... 3F0h of the xAPIC page (SDM volume 3, table 12-1), with two exceptions: the
    /// current count (390h) is the count at `timer_start_ns`, 0 when the timer is stopped, and the reserved place 290h
    /// holds the errors since the last write of ESR. In x2APIC mode, ID and LDR have the form of that mode.
    pub registers: [u32; 64],
}

impl Default for LocalApicState {
    fn default() -> Self {
        Self {
            apic_base: 0,
            tsc_deadline: 0,
            timer_start_ns: 0,
            registers: [0; 64],
        }
    }
}

/// Number of input pins of the I/O APIC.
pub const IOAPIC_PINS: usize = 24;

/// An I/O APIC (82093AA data sheet).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoApicState {
    /// The redirection table, with delivery status and remote IRR.
    pub redirection: [u64; IOAPIC_PINS],
    /// IOREGSEL.
    pub select: u32,
    /// IOAPICID.
    pub id: u32,
    /// Level of each input pin.
    pub levels: u32,
    /// Edges that were latched while the pin was masked or the message could not be sent.
    pub pending: u32,
}

/// The state of a VM's chipset that is neither a recorded device nor a vCPU's, for [`crate::GET_CHIPSET_STATE`] and
/// [`crate::SET_CHIPSET_STATE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChipsetState {
    /// The I/O APIC; zero in a VM without.
    pub ioapic: IoApicState,
    /// PM1_STS and PM1_EN (low and high half) of the ACPI fixed hardware.
    pub pm1_event: u32,
    /// PM1_CNT of the ACPI fixed hardware.
    pub pm1_control: u32,
    /// Level of each ISA interrupt line, as driven by its device.
    pub isa_levels: u32,
    /// Zero.
    pub reserved: u32,
}
