//! Which messages of the guest's kernel show that it noticed something.
//!
//! On the path this is the guest kernel's own judgement: its clocksource watchdog, lockup
//! detectors, interrupt and serial drivers complain when time or devices misbehave after a move.
//!
//! Format of `/dev/kmsg`: Documentation/ABI/testing/dev-kmsg of the kernel: `priority,sequence,us,flags;text`,
//! continued by lines that start with a space.

/// Messages that never are right.
const ALWAYS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "general protection fault",
    "Kernel panic",
    "lockup",
    "rcu_sched self-detected stall",
    "detected stalls on CPUs",
    "blocked for more than",
    "Out of memory",
    "segfault at",
    "traps:",
    "Bad page",
    "Bad FPU state",
    "invalid opcode",
];

/// Messages that are normal while the kernel looks for hardware, and wrong later.
const AFTER_BOOT: &[&str] = &[
    "unstable",
    "NMI",
    "timed out",
    "timeout",
    "Spurious",
    "spurious",
    "nobody cared",
    "Disabling IRQ",
    "too much work for irq",
    "Machine check",
    "Hardware Error",
    "skew",
    "stuck",
    "input overrun",
];

/// Level of error messages, KERN_ERR; smaller is worse.
const KERN_ERR: u8 = 3;

/// A message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Numbered from 0.
    pub sequence: u64,
    /// First line of the text.
    pub text: String,
}

impl Record {
    /// Reads what one read(2) of `/dev/kmsg` returned. None for what isn't a message of the kernel:
    /// another format, or written by a process (facility other than 0).
    pub fn parse(raw: &str) -> Option<Self> {
        let (head, rest) = raw.split_once(';')?;
        let mut fields = head.split(',');
        let priority: u64 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        if priority >> 3 != 0 {
            return None;
        }
        Some(Record {
            level: (priority & 7) as u8,
            sequence,
            text: rest.lines().next().unwrap_or_default().to_owned(),
        })
    }

    /// Whether the message is a reason for concern. `booted`: all checkers run.
    pub fn is_failure(&self, booted: bool) -> bool {
        let has = |words: &[&str]| words.iter().any(|word| self.text.contains(word));
        has(ALWAYS) || booted && (self.level <= KERN_ERR || has(AFTER_BOOT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(raw: &str) -> Record {
        Record::parse(raw).unwrap()
    }

    #[test]
    fn a_record_is_taken_apart() {
        let expected = Record {
            level: 6,
            sequence: 339,
            text: "NET: Registered protocol family 10".to_owned(),
        };
        let raw = "6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n";
        assert_eq!(record(raw), expected);
    }

    #[test]
    fn what_is_no_kernel_message_is_skipped() {
        assert_eq!(Record::parse("14,339,5140900,-;from a process"), None);
        for raw in [
            "",
            ";",
            "6;x",
            "6,;x",
            "a,1;x",
            "no semicolon",
            "-1,2,3,-;x",
        ] {
            assert_eq!(Record::parse(raw), None, "{raw}");
        }
    }

    #[test]
    fn complaints_of_the_kernel_are_failures() {
        for text in [
            "WARNING: CPU: 0 PID: 1 at kernel/time/timekeeping.c:123",
            "BUG: unable to handle page fault for address: ffffc90000000000",
            "Oops: 0000 [#1] PREEMPT SMP",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
            "traps: init[70] trap invalid opcode ip:401000 sp:7ffc00000000 error:0",
        ] {
            let raw = format!("4,1,2,-;{text}");
            assert!(record(&raw).is_failure(false), "{text}");
        }
    }

    #[test]
    fn complaints_about_hardware_are_failures_only_after_boot() {
        for text in [
            "clocksource: Marking clocksource 'tsc' as unstable because the skew is too large:",
            "Uhhuh. NMI received for unknown reason 2d on CPU 0.",
            "serial8250: too much work for irq3",
            "irq 3: nobody cared (try booting with the \"irqpoll\" option)",
            "spurious 8259A interrupt: IRQ7.",
        ] {
            let raw = format!("5,1,2,-;{text}");
            assert!(record(&raw).is_failure(true), "{text}");
            assert!(!record(&raw).is_failure(false), "{text}");
        }
    }

    #[test]
    fn any_error_message_after_boot_is_a_failure() {
        assert!(record("3,1,2,-;something new").is_failure(true));
        assert!(!record("3,1,2,-;something new").is_failure(false));
        assert!(!record("4,1,2,-;something new").is_failure(true));
    }

    #[test]
    fn normal_messages_are_none() {
        for text in [
            "clocksource: Switched to clocksource tsc",
            "random: crng init done",
        ] {
            assert!(!record(&format!("6,1,2,-;{text}")).is_failure(true));
        }
    }
}
