// SPDX-License-Identifier: GPL-2.0
//! Instructions that the monitor carries out: accesses to device memory, and string I/O.
//!
//! Both need the guest's page tables or memory, hence the owner's address space, and run outside a window.
#![forbid(unsafe_code)]

use super::{error, Surroundings, Vcpu};
use crate::arch::x86::registers::{rdtsc, RCX, RDI, RFLAGS_DF, RSI};
use crate::arch::x86::snapshot::{Changes, Exception, Snapshot};
use crate::arch::x86::vmx::VmxVcpu;
use crate::decode::{decode, CodeSize, Registers, SegmentName, MAX_LENGTH};
use crate::iospace::{Direction, Width};
use crate::paging::{GuestPhysicalRead, Paging, Purpose, TranslateError};
use crate::platform::PortOutcome;
use pvmm_hostabi::{Gpa, Host, Interrupted, PAGE_SIZE};
use pvmm_uapi::{Run, ERROR_DECODE};

/// One element of an INS or OUTS.
#[derive(Debug, Clone, Copy)]
pub(super) struct StringElement {
    pub port: u16,
    pub width: Width,
    pub direction: Direction,
    pub repeat: bool,
    pub linear: u64,
    pub address_bytes: u8,
    pub length: u8,
}

/// Guest-physical place of an operand, which may lie in two pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u64,
    /// Bytes of it from `first` on.
    in_first: u64,
    /// Where the rest is.
    second: u64,
}

impl Place {
    /// The address, if all is in one page.
    fn whole(&self, width: Width) -> Option<u64> {
        (self.in_first >= u64::from(width.bytes())).then_some(self.first)
    }

    /// The address of one byte.
    fn byte(&self, number: u8) -> u64 {
        let number = u64::from(number);
        if number < self.in_first {
            self.first.wrapping_add(number)
        } else {
            self.second.wrapping_add(number.wrapping_sub(self.in_first))
        }
    }
}

/// Guest memory as the page walk reads it.
struct Tables<'a, 'b, H: Host>(&'a Surroundings<'b, H>);

impl<H: Host> GuestPhysicalRead for Tables<'_, '_, H> {
    fn read_u64(&mut self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.0
            .memory
            .read(self.0.space, Gpa(gpa), &mut bytes)
            .ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn read_u32(&mut self, gpa: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.0
            .memory
            .read(self.0.space, Gpa(gpa), &mut bytes)
            .ok()?;
        Some(u32::from_le_bytes(bytes))
    }
}

/// The vCPU's registers while an instruction is carried out.
struct Executing<'a, H: Host> {
    cpu: &'a mut VmxVcpu<H>,
    snapshot: Snapshot,
    changes: Changes,
}

impl<H: Host> Registers for Executing<'_, H> {
    fn gpr(&self, index: u8) -> u64 {
        self.cpu.gpr(index)
    }

    fn set_gpr(&mut self, index: u8, value: u64) {
        self.cpu.set_gpr(index, value);
    }

    fn rip(&self) -> u64 {
        self.changes.rip.unwrap_or(self.snapshot.rip)
    }

    fn set_rip(&mut self, value: u64) {
        self.changes.rip = Some(value);
    }

    fn rflags(&self) -> u64 {
        self.changes.rflags.unwrap_or(self.snapshot.rflags)
    }

    fn set_rflags(&mut self, value: u64) {
        self.changes.rflags = Some(value);
    }

    fn segment_base(&self, segment: SegmentName) -> u64 {
        let index = match segment {
            SegmentName::Es => 0,
            SegmentName::Cs => 1,
            SegmentName::Ss => 2,
            SegmentName::Ds => 3,
            SegmentName::Fs => 4,
            SegmentName::Gs => 5,
        };
        self.snapshot.segments[index].base
    }
}

impl<H: Host> Vcpu<H> {
    fn paging(&self) -> Paging {
        let snapshot = self.cpu.snapshot();
        Paging {
            cr0: snapshot.cr0,
            cr3: snapshot.cr3,
            cr4: snapshot.cr4,
            efer: snapshot.efer,
        }
    }

    /// Guest-physical address of a linear one, or the exception that the access raises.
    fn translate(
        &self,
        around: &Surroundings<'_, H>,
        linear: u64,
        write: bool,
    ) -> Result<u64, Exception> {
        let purpose = Purpose {
            write,
            user: self.cpu.snapshot().cpl() == 3,
            fetch: false,
        };
        match self
            .paging()
            .translate(linear, purpose, &mut Tables(around))
        {
            Ok(translation) => Ok(translation.gpa),
            Err(TranslateError::PageFault(code)) => Err(Exception {
                vector: 14,
                error_code: Some(code),
                address: Some(linear),
            }),
            Err(TranslateError::NotCanonical | TranslateError::NoTable(_)) => {
                Err(Exception::GENERAL_PROTECTION)
            }
        }
    }

    /// Copies the instruction at RIP; how many bytes could be had.
    fn fetch(&self, around: &Surroundings<'_, H>, bytes: &mut [u8; MAX_LENGTH]) -> usize {
        let snapshot = self.cpu.snapshot();
        let mut linear = snapshot.rip.wrapping_add(snapshot.segments[1].base);
        if snapshot.code_size() != CodeSize::Bits64 {
            linear &= 0xffff_ffff;
        }
        let mut got = 0;
        while got < bytes.len() {
            let at = linear.wrapping_add(got as u64);
            let Ok(gpa) = self.translate(around, at, false) else {
                break;
            };
            let in_page = (PAGE_SIZE - (gpa & (PAGE_SIZE - 1))) as usize;
            let end = bytes.len().min(got + in_page);
            let Some(part) = bytes.get_mut(got..end) else {
                break;
            };
            if around.memory.read(around.space, Gpa(gpa), part).is_err() {
                break;
            }
            got = end;
        }
        got
    }

    /// Carries out the instruction at RIP, which touched device memory at `gpa`.
    pub(super) fn device_memory(
        &mut self,
        gpa: Gpa,
        around: &Surroundings<'_, H>,
        run: &mut Run,
    ) -> Result<bool, Interrupted> {
        let mut bytes = [0; MAX_LENGTH];
        let got = self.fetch(around, &mut bytes);
        let snapshot = *self.cpu.snapshot();
        let Ok(instruction) = decode(bytes.get(..got).unwrap_or(&[]), snapshot.code_size()) else {
            return Ok(error(run, ERROR_DECODE, snapshot.rip, gpa.0));
        };
        let access = {
            let executing = Executing {
                cpu: &mut self.cpu,
                snapshot,
                changes: Changes::default(),
            };
            instruction.access(&executing)
        };
        let width = access.width;
        let mut read = 0;
        if let Some(linear) = access.read {
            match self.place(around, linear, width, false) {
                Ok(place) => read = self.memory_read(around, place, width),
                Err(exception) => return Ok(self.raise(exception)),
            }
        }
        // The write's translation comes before the instruction takes effect: a fault must leave everything as it was.
        let target = match access
            .write
            .map(|linear| self.place(around, linear, width, true))
        {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(exception)) => return Ok(self.raise(exception)),
        };
        let mut executing = Executing {
            cpu: &mut self.cpu,
            snapshot,
            changes: Changes::default(),
        };
        let written = instruction.execute(&mut executing, read);
        let changes = executing.changes;
        *self.cpu.changes() = changes;
        if let (Some(place), Some(value)) = (target, written) {
            self.memory_write(around, place, width, value);
        }
        Ok(false)
    }

    fn raise(&mut self, exception: Exception) -> bool {
        self.cpu.changes().exception = Some(exception);
        false
    }

    /// Where an operand of `width` is, or the exception that the access raises.
    fn place(
        &self,
        around: &Surroundings<'_, H>,
        linear: u64,
        width: Width,
        write: bool,
    ) -> Result<Place, Exception> {
        let first = self.translate(around, linear, write)?;
        let in_page = PAGE_SIZE - (first & (PAGE_SIZE - 1));
        let bytes = u64::from(width.bytes());
        if in_page >= bytes {
            return Ok(Place {
                first,
                in_first: bytes,
                second: 0,
            });
        }
        let next = linear.wrapping_add(in_page) & self.linear_mask();
        let second = self.translate(around, next, write)?;
        Ok(Place {
            first,
            in_first: in_page,
            second,
        })
    }

    /// The bits that linear addresses have in the guest's mode.
    fn linear_mask(&self) -> u64 {
        match self.cpu.snapshot().code_size() {
            CodeSize::Bits64 => u64::MAX,
            CodeSize::Bits16 | CodeSize::Bits32 => 0xffff_ffff,
        }
    }

    /// Reads RAM or a device; what is neither reads all ones. An operand in two pages is read byte by byte, as a
    /// processor's bus would get it in two accesses.
    fn memory_read(&mut self, around: &Surroundings<'_, H>, place: Place, width: Width) -> u64 {
        if let Some(gpa) = place.whole(width) {
            return self.read_at(around, gpa, width);
        }
        (0..width.bytes()).fold(0, |value, byte| {
            value | self.read_at(around, place.byte(byte), Width::W1) << (8 * byte)
        })
    }

    fn read_at(&mut self, around: &Surroundings<'_, H>, gpa: u64, width: Width) -> u64 {
        let now = self.platform.now(rdtsc());
        if let Some(value) = self.platform.chipset_at(now).mmio_read(gpa, width, now) {
            return value & width.mask();
        }
        let mut bytes = [0; 8];
        let part = bytes
            .get_mut(..usize::from(width.bytes()))
            .unwrap_or(&mut []);
        match around.memory.read(around.space, Gpa(gpa), part) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => width.mask(),
        }
    }

    /// Writes RAM or a device; what is neither takes the write and forgets it.
    fn memory_write(
        &mut self,
        around: &Surroundings<'_, H>,
        place: Place,
        width: Width,
        value: u64,
    ) {
        if let Some(gpa) = place.whole(width) {
            self.write_at(around, gpa, width, value);
            return;
        }
        for byte in 0..width.bytes() {
            self.write_at(around, place.byte(byte), Width::W1, value >> (8 * byte));
        }
    }

    fn write_at(&mut self, around: &Surroundings<'_, H>, gpa: u64, width: Width, value: u64) {
        let now = self.platform.now(rdtsc());
        if self
            .platform
            .chipset_at(now)
            .mmio_write(gpa, width, value & width.mask(), now)
            .is_some()
        {
            return;
        }
        let bytes = value.to_le_bytes();
        if let Some(part) = bytes.get(..usize::from(width.bytes())) {
            // Memory that is not there forgets what is written to it.
            let _ = around.memory.write(around.space, Gpa(gpa), part);
        }
    }

    /// Carries out one element of INS or OUTS; whether userspace has something to do. RIP moves on when the count is used
    /// up; until then the instruction comes again, and interrupts get their turn in between, as on hardware.
    pub(super) fn string_port(
        &mut self,
        element: &StringElement,
        around: &Surroundings<'_, H>,
        run: &mut Run,
    ) -> bool {
        let mask = match element.address_bytes {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let snapshot = *self.cpu.snapshot();
        let next = snapshot.behind(element.length);
        let count = self.cpu.gpr(RCX as u8) & mask;
        if element.repeat && count == 0 {
            self.cpu.changes().rip = Some(next);
            return false;
        }
        let write = element.direction == Direction::Read;
        let place = match self.place(around, element.linear, element.width, write) {
            Ok(place) => place,
            Err(exception) => return self.raise(exception),
        };
        let mut leaves = false;
        if element.direction == Direction::Read {
            // Userspace's ports answer strings with all ones: none of its devices is read that way.
            let value = match self.port_access(element.port, element.width, Direction::Read, 0) {
                PortOutcome::Done(value) => value,
                PortOutcome::User => element.width.mask(),
            };
            self.memory_write(around, place, element.width, value);
        } else {
            let value = self.memory_read(around, place, element.width);
            if self.port_access(element.port, element.width, Direction::Write, value)
                == PortOutcome::User
            {
                run.exit = pvmm_uapi::EXIT_IO;
                run.address = u64::from(element.port);
                run.value = value;
                run.width = u32::from(element.width.bytes());
                run.write = 1;
                leaves = true;
            }
        }
        let index = if write { RDI } else { RSI } as u8;
        let step = u64::from(element.width.bytes());
        let old = self.cpu.gpr(index);
        let moved = if snapshot.rflags & RFLAGS_DF != 0 {
            old.wrapping_sub(step)
        } else {
            old.wrapping_add(step)
        };
        self.set_masked(index, moved, mask);
        if element.repeat {
            self.set_masked(RCX as u8, count.wrapping_sub(1), mask);
        }
        if !element.repeat || count == 1 {
            self.cpu.changes().rip = Some(next);
        }
        leaves
    }

    /// Writes the part of a register that the address size covers; 32 bits clear the upper half.
    fn set_masked(&mut self, index: u8, value: u64, mask: u64) {
        let old = self.cpu.gpr(index);
        let kept = if mask == 0xffff { old & !mask } else { 0 };
        self.cpu.set_gpr(index, kept | (value & mask));
    }
}
