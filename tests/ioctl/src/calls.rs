//! The calls that are made, and the errors that their documentation knows.

use nix::errno::Errno;
use pvmm_uapi::*;

/// A call.
pub struct Call {
    /// Its name, for the report.
    pub name: &'static str,
    /// The errors that it may fail with.
    pub errors: &'static [Errno],
}

/// A request and its name.
pub struct Request {
    /// Its number.
    pub number: u32,
    /// As a call.
    pub call: Call,
}

macro_rules! requests {
    ($($name:ident: $($error:ident)*;)*) => {
        /// All requests of the ABI. A descriptor that another thread has closed is `EBADF` for each of them.
        pub const REQUESTS: &[Request] = &[
            $(Request {
                number: $name,
                call: Call { name: stringify!($name), errors: &[Errno::EBADF, $(Errno::$error),*] },
            },)*
        ];
    };
}

requests! {
    GET_API_VERSION:;
    GET_CAPABILITIES: EFAULT;
    GET_SUPPORTED_CPUID: EFAULT ENOMEM ENOSPC;
    CREATE_VM: EFAULT EINVAL EEXIST EOPNOTSUPP;
    SET_MEMORY_REGION: EFAULT EINVAL EEXIST ENOSPC ENXIO EBUSY;
    CREATE_VCPU: EFAULT EINVAL EEXIST ENXIO EBUSY ENOMEM EINTR;
    SET_CPUID: EFAULT EINVAL ENXIO EPERM EBUSY ENOMEM;
    RUN: EFAULT EINVAL ENXIO EPERM EBUSY EINTR;
    GET_VCPU_STATE: EFAULT EINVAL ENXIO EPERM EBUSY ENOMEM EIO;
    SET_VCPU_STATE: EFAULT EINVAL ENXIO EPERM EBUSY ENOMEM;
    GET_CLOCK: EFAULT ENXIO EPERM;
    SET_CLOCK: EFAULT EINVAL ENXIO EPERM EBUSY;
    GET_CHIPSET_STATE: EFAULT ENXIO EPERM EBUSY;
    SET_CHIPSET_STATE: EFAULT EINVAL ENXIO EPERM EBUSY;
    IRQ_LINE: EFAULT EINVAL ENXIO EPERM;
    DIRTY_LOG: EFAULT EINVAL ENXIO EPERM;
    DIRTY_FETCH: EFAULT EINVAL ENXIO EPERM;
    ATTACH_DEVICE: EFAULT EINVAL EEXIST ENXIO EPERM EBUSY ENOMEM ENODEV ENOSPC;
    DEVICE_CAPTURE: EFAULT EINVAL ENXIO EPERM EBUSY EAGAIN ENOMEM ENOSPC EIO EOPNOTSUPP;
    DEVICE_EXECUTE: EFAULT EINVAL ENXIO EPERM EBUSY ENOMEM;
    DEVICE_PEEK: EFAULT EINVAL ENXIO EPERM EBUSY ENOMEM ENOSPC;
    DEVICE_TRACE: EFAULT EINVAL EEXIST ENXIO EPERM ENOMEM;
}

/// The other calls, which have the numbers after the requests.
const OTHERS: &[Call] = &[
    Call {
        name: "open",
        errors: &[Errno::EACCES],
    },
    Call {
        name: "unknown-request",
        errors: &[Errno::EBADF, Errno::ENOTTY],
    },
    Call {
        name: "request-to-another-file",
        errors: &[Errno::ENOTTY],
    },
    Call {
        name: "read",
        errors: &[Errno::EBADF, Errno::EINVAL],
    },
    Call {
        name: "write",
        errors: &[Errno::EBADF, Errno::EINVAL],
    },
    Call {
        name: "lseek",
        errors: &[Errno::EBADF, Errno::EINVAL, Errno::ESPIPE],
    },
    Call {
        name: "poll",
        errors: &[],
    },
    Call {
        name: "mmap",
        errors: &[
            Errno::EBADF,
            Errno::EINVAL,
            Errno::ENODEV,
            Errno::ENOMEM,
            Errno::EOVERFLOW,
            Errno::EAGAIN,
        ],
    },
];

/// Numbers of the calls in [`OTHERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// Opening the device.
    Open,
    /// A request that isn't the ABI's.
    Unknown,
    /// A request to a file that isn't the device.
    AnotherFile,
    /// Reading from the device.
    Read,
    /// Writing to the device.
    Write,
    /// Moving its position.
    Seek,
    /// Waiting for it.
    Poll,
    /// Mapping it.
    Map,
}

impl Other {
    /// Its number among all calls.
    pub const fn number(self) -> usize {
        REQUESTS.len() + self as usize
    }
}

/// The kinds of calls that must fail.
const MUST_FAIL: [Other; 6] = [
    Other::Unknown,
    Other::AnotherFile,
    Other::Read,
    Other::Write,
    Other::Seek,
    Other::Map,
];

/// All calls.
pub fn all() -> impl Iterator<Item = &'static Call> {
    REQUESTS.iter().map(|request| &request.call).chain(OTHERS)
}

/// The number of a request among all calls; that of an unknown one if the ABI has none.
pub fn of_request(number: u32) -> usize {
    REQUESTS
        .iter()
        .position(|request| request.number == number)
        .unwrap_or(Other::Unknown.number())
}

/// Whether a call may have this outcome; an error number, or 0.
pub fn is_documented(number: usize, call: &Call, errno: i32) -> bool {
    if errno == 0 {
        return !MUST_FAIL.iter().any(|other| other.number() == number);
    }
    call.errors.contains(&Errno::from_raw(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_there_once_and_every_other_call_has_its_number() {
        assert_eq!(REQUESTS.len(), 22);
        for (index, request) in REQUESTS.iter().enumerate() {
            assert_eq!(of_request(request.number), index);
        }
        assert_eq!(Other::Open.number(), of_request(0) - 1);
        assert_eq!(all().count(), Other::Map.number() + 1);
        let names = ["open", "unknown-request", "request-to-another-file"];
        for (name, call) in names.iter().zip(all().skip(REQUESTS.len())) {
            assert_eq!(*name, call.name);
        }
    }

    #[test]
    fn only_documented_outcomes_are_documented() {
        let run = of_request(RUN);
        let call = all().nth(run).expect("it is there");
        assert!(is_documented(run, call, 0));
        assert!(is_documented(run, call, Errno::EINTR as i32));
        assert!(!is_documented(run, call, Errno::ENOSPC as i32));
        let map = Other::Map.number();
        let call = all().nth(map).expect("it is there");
        assert!(!is_documented(map, call, 0));
    }
}
