//! The cases: each makes snippets of one kind.

mod descriptors;
mod devices;
mod fatal;
mod interrupts;
mod processor;
pub mod random_code;

use crate::layout::{CODE, DATA, LAST_PAGE, PLAYGROUND_LINEAR, RAM_END, ROOM};
use crate::random::Random;
use crate::snippet::{Mode, Privilege, Snippet};

/// A kind of misbehaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// IN and OUT.
    Ports,
    /// INS and OUTS.
    StringPorts,
    /// Instructions on device memory, and where there is nothing.
    DeviceMemory,
    /// RDMSR and WRMSR.
    Msr,
    /// CPUID.
    Cpuid,
    /// Control registers and XCR0.
    Control,
    /// Debug registers, breakpoints and single steps.
    Debug,
    /// Segments, descriptor tables, far transfers.
    Descriptors,
    /// Instructions of VT-x.
    Vmx,
    /// Other privileged or unusual instructions.
    System,
    /// Registers of the local APIC and the I/O APIC.
    Apic,
    /// Interrupts and NMIs as fast as they can be had.
    Storm,
    /// Random page tables.
    Paging,
    /// Large parts of memory written.
    Memory,
    /// Code that changes itself.
    SelfModifying,
    /// Random bytes as code.
    RandomCode,
    /// An exception without an IDT.
    TripleFault,
    /// CR3 points to nothing.
    WildCr3,
    /// HLT with interrupts off.
    HaltForever,
    /// An endless loop with interrupts off and an unusual rounding mode.
    Spin,
    /// The IDT is in device memory.
    DeviceIdt,
    /// The stack is in device memory.
    DeviceStack,
    /// Code is fetched from device memory.
    DeviceCode,
    /// Device memory is the operand of an instruction that nobody uses on devices.
    DeviceOperand,
    /// A task switch.
    TaskSwitch,
    /// Random bytes as code where nothing leads back from an exception.
    WildCode,
    /// The reset register.
    Reset,
}

/// Case and name.
const NAMES: [(Case, &str); 27] = [
    (Case::Ports, "ports"),
    (Case::StringPorts, "string-ports"),
    (Case::DeviceMemory, "device-memory"),
    (Case::Msr, "msr"),
    (Case::Cpuid, "cpuid"),
    (Case::Control, "control"),
    (Case::Debug, "debug"),
    (Case::Descriptors, "descriptors"),
    (Case::Vmx, "vmx"),
    (Case::System, "system"),
    (Case::Apic, "apic"),
    (Case::Storm, "storm"),
    (Case::Paging, "paging"),
    (Case::Memory, "memory"),
    (Case::SelfModifying, "self-modifying"),
    (Case::RandomCode, "random-code"),
    (Case::TripleFault, "triple-fault"),
    (Case::WildCr3, "wild-cr3"),
    (Case::HaltForever, "halt-forever"),
    (Case::Spin, "spin"),
    (Case::DeviceIdt, "device-idt"),
    (Case::DeviceStack, "device-stack"),
    (Case::DeviceCode, "device-code"),
    (Case::DeviceOperand, "device-operand"),
    (Case::TaskSwitch, "task-switch"),
    (Case::WildCode, "wild-code"),
    (Case::Reset, "reset"),
];

impl Case {
    /// All cases, in the order in which they run.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(case, _)| *case)
    }

    /// The case's name on command line and console.
    pub fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(case, _)| *case == self)
            .map_or("", |(_, name)| name)
    }

    /// Whether the guest is not expected to go on after it.
    pub const fn is_fatal(self) -> bool {
        self as u8 >= Self::TripleFault as u8
    }

    /// The snippet of one round.
    pub fn snippet(self, seed: u64, round: u64) -> Snippet {
        let random = Random::new(seed, self as u64, round);
        let random = &random;
        match self {
            Self::Ports => devices::ports(random),
            Self::StringPorts => devices::string_ports(random),
            Self::DeviceMemory => devices::memory(random),
            Self::Msr => processor::msr(random),
            Self::Cpuid => processor::cpuid(random),
            Self::Control => processor::control(random),
            Self::Debug => interrupts::debug(random),
            Self::Descriptors => descriptors::descriptors(random),
            Self::Vmx => processor::vmx(random),
            Self::System => processor::system(random),
            Self::Apic => interrupts::apic(random),
            Self::Storm => interrupts::storm(random),
            Self::Paging => random_code::paging(random),
            Self::Memory => random_code::fill(random),
            Self::SelfModifying => random_code::self_modifying(random),
            Self::RandomCode => random_code::random_code(random),
            _ => fatal::snippet(self, random),
        }
    }
}

/// An address for a register of random code: memory that may be written, or where there is no page.
pub(crate) fn address(mode: Mode, random: &Random) -> u64 {
    if mode.bits() == 16 {
        return random.odd_number() & 0xffff;
    }
    let near = random.below(64).wrapping_sub(32);
    match random.below(10) {
        0..=2 => DATA + random.below(ROOM),
        3 => (DATA + 0x1000 * (1 + random.below(15))).wrapping_add(near),
        4 => CODE + random.below(0x400),
        5 if mode == Mode::Long => LAST_PAGE + 0x1000 - random.below(16),
        6 if mode == Mode::Long => 0x8000_0000_0000 + random.below(1 << 40),
        7 if mode == Mode::Long => PLAYGROUND_LINEAR + random.below(1 << 30),
        8 => RAM_END.wrapping_add(near),
        _ => random.odd_number() >> if mode == Mode::Long { 0 } else { 32 },
    }
}

/// One of the modes, in ring 0 unless it has only ring 3.
fn any_mode(random: &Random) -> Mode {
    // Half of the time 64-bit mode, which costs no change of mode.
    if random.one_in(2) {
        Mode::Long
    } else {
        random.pick(&Mode::ALL)
    }
}

/// A snippet in any mode, mostly in ring 0.
fn anywhere(random: &Random) -> Snippet {
    let mode = any_mode(random);
    let privilege = if random.one_in(5) {
        Privilege::User
    } else {
        Privilege::Kernel
    };
    Snippet::new(mode, privilege, random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_one_name_and_makes_code() {
        assert_eq!(Case::all().count(), NAMES.len());
        for (number, case) in Case::all().enumerate() {
            assert_eq!(case as usize, number, "{case:?} is out of order");
            let mut names = Case::all().filter(|other| other.name() == case.name());
            assert_eq!((names.next(), names.next()), (Some(case), None));
            for round in 0..2000 {
                let snippet = case.snippet(7, round);
                assert!(!snippet.code.bytes().is_empty(), "{case:?} {round}");
                assert!(
                    u64::from(snippet.offset) + (snippet.code.bytes().len() as u64) < ROOM,
                    "{case:?} {round}"
                );
            }
        }
    }

    #[test]
    fn random_code_that_is_survived_runs_where_exceptions_find_a_stack() {
        for round in 0..2000 {
            let snippet = Case::RandomCode.snippet(3, round);
            assert!(snippet.mode.has_safe_stack(snippet.privilege), "{round}");
        }
    }
}
