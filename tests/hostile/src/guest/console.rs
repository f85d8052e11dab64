//! COM1.

use crate::hardware::{port_in, port_out};
use core::fmt::{self, Write};

const PORT: u16 = 0x3f8;
/// LSR: the transmitter takes another byte.
const THRE: u8 = 1 << 5;

/// The serial port; writing to it never fails.
pub struct Console;

/// Sets the port up: 115,200 baud, 8N1, FIFOs, no interrupts. Snippets may have left it in any state.
pub fn open() {
    for (offset, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (4, 3)] {
        port_out(PORT + offset, value);
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // A port that never gets ready has no one to tell.
            for _ in 0..100_000 {
                if port_in(PORT + 5) & THRE != 0 {
                    break;
                }
            }
            port_out(PORT, byte);
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        $crate::console::open();
        // The console has no errors.
        let _ = write!($crate::console::Console, $($argument)*);
        let _ = $crate::console::Console.write_str("\r\n");
    }};
}
pub(crate) use say;
