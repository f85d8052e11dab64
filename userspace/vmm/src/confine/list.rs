// SPDX-License-Identifier: GPL-2.0
//! Lists of system calls, and the filters (seccomp(2)) that are made of them.

use super::ConfineError;
use nix::libc::{c_long, SYS_clone3, ENOSYS};
use seccompiler::{
    apply_filter, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// An argument of a system call: its bits in `mask` are `value`. Arguments of 32 bits are told by a mask of 32 bits.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// Which, from 0.
    pub index: u8,
    /// The bits that are looked at.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

impl Argument {
    /// An argument of 32 bits that is `value`.
    pub const fn is(index: u8, value: u32) -> Self {
        Self {
            index,
            mask: u32::MAX as u64,
            value: value as u64,
        }
    }

    /// An argument of which the bits in `mask` are `value`.
    pub const fn bits(index: u8, mask: u32, value: u32) -> Self {
        Self {
            index,
            mask: mask as u64,
            value: value as u64,
        }
    }

    /// A pointer that is null.
    pub const fn null(index: u8) -> Self {
        Self {
            index,
            mask: u64::MAX,
            value: 0,
        }
    }

    fn condition(self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let length = match u32::try_from(self.mask) {
            Ok(_) => SeccompCmpArgLen::Dword,
            Err(_) => SeccompCmpArgLen::Qword,
        };
        let operator = SeccompCmpOp::MaskedEq(self.mask);
        SeccompCondition::new(self.index, length, operator, self.value)
    }
}

/// A line of a list.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// These calls, whatever their arguments.
    Any(&'static [c_long]),
    /// This call, if all of these hold. Several lines about one call are alternatives.
    If(c_long, &'static [Argument]),
    /// This call, if its first argument is the number of this process.
    OwnProcess(c_long),
}

/// What becomes of a call that is on no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMismatch {
    /// See [`super::refused`].
    Refuse,
    /// It is carried out, and the kernel's log names it.
    Log,
}

/// A filter that can be applied to a thread.
pub(super) struct Filter {
    calls: usize,
    /// The list, and what is refused without a word.
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Makes a filter of a list.
    pub(super) fn new(list: &[&[Rule]], on_mismatch: OnMismatch) -> Result<Self, ConfineError> {
        let failed = |error| ConfineError::Filter(seccompiler::Error::Backend(error));
        let mut calls: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
        let mut add = |number, arguments: &[Argument]| {
            let conditions: Result<_, _> = arguments.iter().map(|a| a.condition()).collect();
            let rule = conditions.and_then(SeccompRule::new).map_err(failed)?;
            calls.entry(number).or_default().push(rule);
            Ok(())
        };
        for rule in list.iter().copied().flatten() {
            match rule {
                Rule::Any(_) => {}
                Rule::If(number, arguments) => add(*number, arguments)?,
                Rule::OwnProcess(number) => add(*number, &[Argument::is(0, std::process::id())])?,
            }
        }
        // The last: a call without conditions needs none of its others.
        for rule in list.iter().copied().flatten() {
            if let Rule::Any(numbers) = rule {
                calls.extend(numbers.iter().map(|number| (*number, Vec::new())));
            }
        }
        let action = match on_mismatch {
            OnMismatch::Refuse => SeccompAction::Trap,
            OnMismatch::Log => SeccompAction::Log,
        };
        let count = calls.len();
        let program = |rules, mismatch, matched| {
            SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
                .and_then(BpfProgram::try_from)
                .map_err(failed)
        };
        let mut programs = Vec::new();
        if calls.contains_key(&SYS_clone3) && on_mismatch == OnMismatch::Refuse {
            // Its flags lie in memory, where no filter sees them; libc takes `clone` instead. A word about it would be one
            // for each thread, and cannot be said: libc blocks all signals meanwhile.
            let rules = BTreeMap::from([(SYS_clone3, Vec::new())]);
            let enosys = SeccompAction::Errno(ENOSYS.unsigned_abs());
            programs.push(program(rules, SeccompAction::Allow, enosys)?);
        }
        // The last: it may not allow the call that applies the other.
        programs.push(program(calls, action, SeccompAction::Allow)?);
        Ok(Self {
            calls: count,
            programs,
        })
    }

    /// How many calls are on the list.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    /// Applies it to this thread and those that it will start.
    pub(super) fn apply(&self) -> Result<(), seccompiler::Error> {
        self.programs
            .iter()
            .try_for_each(|program| apply_filter(program))
    }
}
