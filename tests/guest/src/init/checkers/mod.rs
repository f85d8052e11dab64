//! The checks, each a process of its own.
//!
//! On the path: each checks one kind of state that is moved with the guest.
#![forbid(unsafe_code)]

mod clock;
mod com2;
mod memory;
mod registers;

use std::fmt;
use std::process::ExitCode;

use crate::boot;
use crate::report::{Ended, Reporter};

/// What a checker checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clocks and timers.
    Clock,
    /// Registers of the CPU.
    Registers,
    /// The second serial port.
    Com2,
    /// Memory: number of the process, pages.
    Memory(u32, u32),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Clock => write!(f, "clock"),
            Role::Registers => write!(f, "registers"),
            Role::Com2 => write!(f, "com2"),
            Role::Memory(number, _) => write!(f, "memory{number}"),
        }
    }
}

impl Role {
    /// The arguments that make this program the checker.
    pub fn arguments(self) -> Vec<String> {
        match self {
            Role::Memory(number, pages) => {
                vec!["memory".to_owned(), number.to_string(), pages.to_string()]
            }
            _ => vec![self.to_string()],
        }
    }

    /// The reverse of [`Role::arguments`].
    pub fn parse(name: &str, mut arguments: impl Iterator<Item = String>) -> Option<Role> {
        let mut number = || arguments.next()?.parse().ok();
        match name {
            "clock" => Some(Role::Clock),
            "registers" => Some(Role::Registers),
            "com2" => Some(Role::Com2),
            "memory" => Some(Role::Memory(number()?, number()?)),
            _ => None,
        }
    }
}

/// Runs a checker until PID 1 tells it to end.
pub fn run(role: Role) -> ExitCode {
    // PID 1 has told about wrong parameters already.
    let (config, _) = boot::config();
    let mut reporter = Reporter::new(config.status);
    let Err(Ended) = match role {
        Role::Clock => clock::run(&mut reporter, &config),
        Role::Registers => registers::run(&mut reporter),
        Role::Com2 => com2::run(&mut reporter, &config),
        Role::Memory(number, pages) => memory::run(&mut reporter, &config, number, pages),
    };
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_found_by_its_arguments() {
        for role in [
            Role::Clock,
            Role::Registers,
            Role::Com2,
            Role::Memory(1, 2000),
        ] {
            let mut arguments = role.arguments().into_iter();
            let name = arguments.next().unwrap();
            assert_eq!(Role::parse(&name, arguments), Some(role));
        }
        assert_eq!(
            Role::parse("memory", ["1".to_owned(), "x".to_owned()].into_iter()),
            None
        );
        assert_eq!(Role::parse("quiet", std::iter::empty()), None);
    }
}
