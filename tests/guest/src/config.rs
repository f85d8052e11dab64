//! What the guest is to do: the parameters on the kernel's command line and the commands on COM1.
//!
//! On the path this is how a test steers the guest, before and during a move.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `pvmm.load=idle\|slow\|fast` | `idle` | how memory is rewritten: not at all (only read, slowly), at `pvmm.rate`, as fast as the CPU can |
//! | `pvmm.rate=` | 256 | pages per second of the load `slow`, 1 to 1,000,000 |
//! | `pvmm.memory=` | 70 | percent of `MemAvailable` under the pattern, 1 to 95 |
//! | `pvmm.workers=` | 2 | processes that share this memory, 1 to 16 |
//! | `pvmm.gap_ms=` | 2000 | how far clocks may jump and how late timers may be, in ms, 1 to 600,000 |
//! | `pvmm.tick_ms=` | 20 | period of the clock and timer checks, in ms, 5 to 1,000 |
//! | `pvmm.heartbeat_ms=` | 100 | period of the heartbeats, in ms, 10 to 60,000 |
//! | `pvmm.status_ms=` | 1000 | period of the status lines, in ms, 100 to 60,000 |
//! | `pvmm.com2=0\|1` | 1 | use COM2, if the kernel found it |
//! | `pvmm.baud=` | 115200 | speed of COM2 |
//! | `pvmm.exit_after=` | none | seconds from `READY` until everything is verified, summed up and the guest ends |
//! | `pvmm.exit=poweroff\|reboot\|halt` | `poweroff` with ACPI, else `reboot` | how it ends |

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

/// How the memory is rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Not at all: read and verified at a low rate, so that a pre-copy converges at once.
    #[default]
    Idle,
    /// At a rate of pages per second.
    Slow,
    /// As fast as the CPU can: faster than a link carries it away.
    Fast,
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// ACPI S5
    Poweroff,
    /// Reset by the kernel's choice of method
    Reboot,
    /// CPU halted with interrupts disabled
    Halt,
}

/// A line typed on COM1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `load idle|slow|fast [pages per second]`
    Load(Load, Option<u32>),
    /// `verify`: read all of memory now.
    Verify,
    /// `report`: verify, then one line with everything that was measured.
    Report,
    /// `exit [poweroff|reboot|halt]`: verify, sum up, end.
    Exit(Option<Exit>),
}

/// A word that isn't one of those expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not one of a list of words.
    #[error("{given:?} is not one of {expected}")]
    Word {
        /// What was given.
        given: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Not a number, or out of range.
    #[error("{given:?} is not a number from {min} to {max}")]
    Number {
        /// What was given.
        given: String,
        /// Smallest possible value.
        min: u32,
        /// Largest possible value.
        max: u32,
    },
    /// A parameter with a wrong value.
    #[error("parameter {name}: {error}; using the default")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: Box<ConfigError>,
    },
    /// A parameter in our name that doesn't exist.
    #[error("parameter {0} is unknown")]
    Unknown(String),
}

impl FromStr for Load {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "idle" => Ok(Load::Idle),
            "slow" => Ok(Load::Slow),
            "fast" => Ok(Load::Fast),
            _ => Err(ConfigError::Word {
                given: word.to_owned(),
                expected: "idle, slow, fast",
            }),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Load::Idle => "idle",
            Load::Slow => "slow",
            Load::Fast => "fast",
        })
    }
}

impl FromStr for Exit {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "poweroff" => Ok(Exit::Poweroff),
            "reboot" => Ok(Exit::Reboot),
            "halt" => Ok(Exit::Halt),
            _ => Err(ConfigError::Word {
                given: word.to_owned(),
                expected: "poweroff, reboot, halt",
            }),
        }
    }
}

const RATE: (u32, u32) = (1, 1_000_000);

fn number(given: &str, (min, max): (u32, u32)) -> Result<u32, ConfigError> {
    given
        .parse()
        .ok()
        .filter(|value| (min..=max).contains(value))
        .ok_or_else(|| ConfigError::Number {
            given: given.to_owned(),
            min,
            max,
        })
}

fn switch(given: &str) -> Result<bool, ConfigError> {
    match given {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(ConfigError::Word {
            given: given.to_owned(),
            expected: "0, 1",
        }),
    }
}

fn baud(given: &str) -> Result<u32, ConfigError> {
    // 115200 divided by a divisor latch (DLM:DLL) that leaves a speed termios(3) has a name for.
    const SPEEDS: [u32; 9] = [1200, 1800, 2400, 4800, 9600, 19200, 38400, 57600, 115_200];
    given
        .parse()
        .ok()
        .filter(|speed| SPEEDS.contains(speed))
        .ok_or_else(|| ConfigError::Word {
            given: given.to_owned(),
            expected: "1200, 1800, 2400, 4800, 9600, 19200, 38400, 57600, 115200",
        })
}

fn ms(given: &str, range: (u32, u32)) -> Result<Duration, ConfigError> {
    Ok(Duration::from_millis(number(given, range)?.into()))
}

impl FromStr for Command {
    type Err = ConfigError;

    fn from_str(line: &str) -> Result<Self, ConfigError> {
        let mut words = line.split_whitespace();
        let command = match (words.next(), words.next(), words.next()) {
            (Some("load"), Some(load), None) => Command::Load(load.parse()?, None),
            (Some("load"), Some(load), Some(rate)) => {
                Command::Load(load.parse()?, Some(number(rate, RATE)?))
            }
            (Some("verify"), None, _) => Command::Verify,
            (Some("report"), None, _) => Command::Report,
            (Some("exit"), None, _) => Command::Exit(None),
            (Some("exit"), Some(how), None) => Command::Exit(Some(how.parse()?)),
            _ => {
                return Err(ConfigError::Word {
                    given: line.trim().to_owned(),
                    expected: "load idle|slow|fast [pages/s], verify, report, \
                               exit [poweroff|reboot|halt]",
                })
            }
        };
        match words.next() {
            None => Ok(command),
            Some(more) => Err(ConfigError::Word {
                given: more.to_owned(),
                expected: "nothing more on the line",
            }),
        }
    }
}

/// Everything that the parameters say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `pvmm.load`
    pub load: Load,
    /// `pvmm.rate`, pages per second
    pub rate: u32,
    /// `pvmm.memory`, percent
    pub memory: u32,
    /// `pvmm.workers`
    pub workers: u32,
    /// `pvmm.gap_ms`, ms
    pub gap_ms: u32,
    /// `pvmm.tick_ms`
    pub tick: Duration,
    /// `pvmm.heartbeat_ms`
    pub heartbeat: Duration,
    /// `pvmm.status_ms`
    pub status: Duration,
    /// `pvmm.com2`
    pub com2: bool,
    /// `pvmm.baud`
    pub baud: u32,
    /// `pvmm.exit_after`
    pub exit_after: Option<Duration>,
    /// `pvmm.exit`
    pub exit: Option<Exit>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            load: Load::Idle,
            rate: 256,
            memory: 70,
            workers: 2,
            gap_ms: 2000,
            tick: Duration::from_millis(20),
            heartbeat: Duration::from_millis(100),
            status: Duration::from_millis(1000),
            com2: true,
            baud: 115_200,
            exit_after: None,
            exit: None,
        }
    }
}

impl Config {
    /// Reads the parameters out of a kernel command line. A wrong one keeps its default and is in
    /// the list of errors: the guest has to start to be able to tell.
    pub fn from_cmdline(cmdline: &str) -> (Self, Vec<ConfigError>) {
        let mut config = Config::default();
        let mut errors = Vec::new();
        for word in cmdline.split_whitespace() {
            let Some(parameter) = word.strip_prefix("pvmm.") else {
                continue;
            };
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match config.set(name, value) {
                Ok(true) => {}
                Ok(false) => errors.push(ConfigError::Unknown(format!("pvmm.{name}"))),
                Err(error) => errors.push(ConfigError::Parameter {
                    name: format!("pvmm.{name}"),
                    error: Box::new(error),
                }),
            }
        }
        (config, errors)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        match name {
            "load" => self.load = value.parse()?,
            "rate" => self.rate = number(value, RATE)?,
            "memory" => self.memory = number(value, (1, 95))?,
            "workers" => self.workers = number(value, (1, 16))?,
            "gap_ms" => self.gap_ms = number(value, (1, 600_000))?,
            "tick_ms" => self.tick = ms(value, (5, 1_000))?,
            "heartbeat_ms" => self.heartbeat = ms(value, (10, 60_000))?,
            "status_ms" => self.status = ms(value, (100, 60_000))?,
            "com2" => self.com2 = switch(value)?,
            "baud" => self.baud = baud(value)?,
            "exit_after" => {
                let seconds = number(value, (1, 1_000_000))?;
                self.exit_after = Some(Duration::from_secs(seconds.into()));
            }
            "exit" => self.exit = Some(value.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_of_others_change_nothing() {
        let cmdline = "console=ttyS0 quiet load=fast panic=-1";
        assert_eq!(
            Config::from_cmdline(cmdline),
            (Config::default(), Vec::new())
        );
    }

    #[test]
    fn every_parameter_is_read() {
        let (config, errors) = Config::from_cmdline(
            "quiet pvmm.load=fast pvmm.rate=9 pvmm.memory=50 pvmm.workers=3 pvmm.gap_ms=77 \
             pvmm.tick_ms=10 pvmm.heartbeat_ms=250 pvmm.status_ms=500 pvmm.com2=0 pvmm.baud=9600 \
             pvmm.exit_after=12 pvmm.exit=halt\n",
        );
        assert_eq!(errors, []);
        let expected = Config {
            load: Load::Fast,
            rate: 9,
            memory: 50,
            workers: 3,
            gap_ms: 77,
            tick: Duration::from_millis(10),
            heartbeat: Duration::from_millis(250),
            status: Duration::from_millis(500),
            com2: false,
            baud: 9600,
            exit_after: Some(Duration::from_secs(12)),
            exit: Some(Exit::Halt),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_wrong_parameter_keeps_its_default_and_is_told() {
        for (cmdline, message) in [
            (
                "pvmm.load=quick",
                "parameter pvmm.load: \"quick\" is not one of idle, slow, fast; using the default",
            ),
            (
                "pvmm.memory=96",
                "parameter pvmm.memory: \"96\" is not a number from 1 to 95; using the default",
            ),
            (
                "pvmm.gap_ms",
                "parameter pvmm.gap_ms: \"\" is not a number from 1 to 600000; using the default",
            ),
            ("pvmm.lod=fast", "parameter pvmm.lod is unknown"),
        ] {
            let (config, errors) = Config::from_cmdline(cmdline);
            assert_eq!(config, Config::default());
            assert_eq!(errors.len(), 1, "{cmdline}");
            assert_eq!(errors[0].to_string(), message);
        }
    }

    #[test]
    fn commands_are_read() {
        for (line, command) in [
            ("load fast", Command::Load(Load::Fast, None)),
            (" load  slow 12 ", Command::Load(Load::Slow, Some(12))),
            ("verify", Command::Verify),
            ("report", Command::Report),
            ("exit", Command::Exit(None)),
            ("exit reboot", Command::Exit(Some(Exit::Reboot))),
        ] {
            assert_eq!(line.parse(), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for line in [
            "",
            "load",
            "load quick",
            "load slow 0",
            "load slow 1 2",
            "verify x",
            "exit now",
            "exit halt x",
            "ls",
        ] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_command_line_makes_the_parser_panic(text in ".*", name in "[a-z_0-9]*", value in "[^ ]*") {
            let _ = Config::from_cmdline(&text);
            let _ = Config::from_cmdline(&format!("pvmm.{name}={value}"));
            let _ = text.parse::<Command>();
        }
    }
}
