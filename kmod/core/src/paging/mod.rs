// SPDX-License-Identifier: GPL-2.0
//! The guest's page tables: from linear to guest-physical addresses (SDM volume 3, chapter 5).
//!
//! On the path this stands beside the decoder: the processor tells the guest-physical address of the access that it could
//! not make, but the instruction's bytes, and the other operand of a string move, have to be found by a walk. 32-bit, PAE,
//! 4-level and 5-level paging are known, with all page sizes.
//!
//! Checked are presence, the read/write and user/supervisor bits with CR0.WP, and execute-disable. Not checked are reserved
//! bits, SMEP, SMAP and protection keys: the processor has checked them for the access that led here, and for another
//! operand they only turn a fault into an access that the guest's kernel could make in another way. Accessed and dirty
//! flags are not set; a page that is written here is marked dirty by who writes it. PDPTEs come from memory, not from the
//! registers that PAE paging loads them into.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// CR0.WP.
const CR0_WP: u64 = 1 << 16;
/// CR4.PSE.
const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// CR4.LA57.
const CR4_LA57: u64 = 1 << 12;
/// EFER.LMA.
const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
const EFER_NXE: u64 = 1 << 11;

/// Entry: present.
const PRESENT: u64 = 1 << 0;
/// Entry: writable.
const WRITABLE: u64 = 1 << 1;
/// Entry: user.
const USER: u64 = 1 << 2;
/// Entry: maps a page (PS).
const PAGE_SIZE: u64 = 1 << 7;
/// Entry: execute-disable.
const EXECUTE_DISABLE: u64 = 1 << 63;
/// Physical address in an entry of eight bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page-fault error code: the page was present.
pub const FAULT_PRESENT: u32 = 1 << 0;
/// Page-fault error code: a write.
pub const FAULT_WRITE: u32 = 1 << 1;
/// Page-fault error code: in user mode.
pub const FAULT_USER: u32 = 1 << 2;
/// Page-fault error code: an instruction fetch.
pub const FAULT_FETCH: u32 = 1 << 4;

/// Guest memory as the walk needs it.
pub trait GuestPhysicalRead {
    /// Four bytes at `gpa`, which is a multiple of four; `None` if there is no memory.
    fn read_u32(&mut self, gpa: u64) -> Option<u32>;
    /// Eight bytes at `gpa`, which is a multiple of eight; `None` if there is no memory.
    fn read_u64(&mut self, gpa: u64) -> Option<u64>;
}

/// The registers that say how to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// What the access is that an address is translated for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purpose {
    /// It writes.
    pub write: bool,
    /// It is made with CPL 3.
    pub user: bool,
    /// It fetches an instruction.
    pub fetch: bool,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: u64,
    /// Bytes from there to the end of the page; at least 1.
    pub remaining: u64,
}

/// Why a linear address leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranslateError {
    /// #PF, with this error code; CR2 is the linear address.
    PageFault(u32),
    /// The address is not canonical: #GP(0), or #SS(0) for a stack access.
    NotCanonical,
    /// A paging structure is not in memory; its guest-physical address. Real hardware would read all ones or hang.
    NoTable(u64),
}

impl Paging {
    /// Translates `linear`.
    ///
    /// # Errors
    /// See [`TranslateError`]; a fault is the one that the processor would raise.
    pub fn translate<M: GuestPhysicalRead + ?Sized>(
        &self,
        linear: u64,
        purpose: Purpose,
        memory: &mut M,
    ) -> Result<Translation, TranslateError> {
        if self.cr0 & CR0_PG == 0 {
            let gpa = linear & 0xffff_ffff;
            return Ok(Translation {
                gpa,
                remaining: 0x1000 - (gpa & 0xfff),
            });
        }
        let mut walk = Walk {
            paging: self,
            linear,
            purpose,
            rights: USER | WRITABLE,
        };
        if self.efer & EFER_LMA != 0 {
            let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            let sign = 64 - (12 + 9 * levels);
            if ((linear << sign) as i64 >> sign) as u64 != linear {
                return Err(TranslateError::NotCanonical);
            }
            return walk.walk_64(self.cr3 & ADDRESS, levels, memory);
        }
        walk.linear &= 0xffff_ffff;
        if self.cr4 & CR4_PAE == 0 {
            return walk.walk_32(memory);
        }
        // A PDPTE of PAE paging has no rights of its own.
        let entry = walk.read_u64((self.cr3 & 0xffff_ffe0) + 8 * (walk.linear >> 30), memory)?;
        if entry & PRESENT == 0 {
            return Err(walk.fault(0));
        }
        walk.walk_64(entry & ADDRESS, 2, memory)
    }
}

/// One walk.
struct Walk<'a> {
    paging: &'a Paging,
    linear: u64,
    purpose: Purpose,
    /// USER and WRITABLE as far as all entries so far grant them; EXECUTE_DISABLE if one says so.
    rights: u64,
}

impl Walk<'_> {
    fn read_u64<M: GuestPhysicalRead + ?Sized>(
        &self,
        gpa: u64,
        memory: &mut M,
    ) -> Result<u64, TranslateError> {
        memory.read_u64(gpa).ok_or(TranslateError::NoTable(gpa))
    }

    /// Walks tables of 512 entries from the one at `table`, `levels` levels up from a page of 4 KiB.
    fn walk_64<M: GuestPhysicalRead + ?Sized>(
        &mut self,
        mut table: u64,
        levels: u32,
        memory: &mut M,
    ) -> Result<Translation, TranslateError> {
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let entry = self.read_u64(table + 8 * (self.linear >> shift & 0x1ff), memory)?;
            self.take(entry)?;
            // Pages of 1 GiB and 2 MiB; above that the bit is reserved.
            let large = matches!(level, 1 | 2) && entry & PAGE_SIZE != 0;
            if level == 0 || large {
                return self.finish(entry & ADDRESS, 1 << shift);
            }
            table = entry & ADDRESS;
        }
        // The loop ends at level 0, and `levels` is at least 2.
        Err(TranslateError::NoTable(table))
    }

    /// Walks the two levels of 32-bit paging.
    fn walk_32<M: GuestPhysicalRead + ?Sized>(
        &mut self,
        memory: &mut M,
    ) -> Result<Translation, TranslateError> {
        let mut table = self.paging.cr3 & 0xffff_f000;
        for shift in [22, 12] {
            let gpa = table + 4 * (self.linear >> shift & 0x3ff);
            let entry = memory.read_u32(gpa).ok_or(TranslateError::NoTable(gpa))?;
            let entry = u64::from(entry);
            self.take(entry)?;
            if shift == 12 {
                return self.finish(entry & 0xffff_f000, 0x1000);
            }
            if entry & PAGE_SIZE != 0 && self.paging.cr4 & CR4_PSE != 0 {
                // 4 MiB; bits 20:13 are bits 39:32 of the address (PSE-36).
                let high = (entry >> 13 & 0xff) << 32;
                return self.finish(high | (entry & 0xffc0_0000), 1 << 22);
            }
            table = entry & 0xffff_f000;
        }
        // The loop returns at its second step.
        Err(TranslateError::NoTable(table))
    }

    /// Takes an entry's presence and rights into account.
    fn take(&mut self, entry: u64) -> Result<(), TranslateError> {
        if entry & PRESENT == 0 {
            return Err(self.fault(0));
        }
        self.rights &= entry | EXECUTE_DISABLE;
        if self.paging.efer & EFER_NXE != 0 {
            self.rights |= entry & EXECUTE_DISABLE;
        }
        Ok(())
    }

    /// Checks the rights and makes the address in the page at `page`.
    fn finish(&self, page: u64, size: u64) -> Result<Translation, TranslateError> {
        let read_only = self.rights & WRITABLE == 0;
        let protected = self.purpose.user || self.paging.cr0 & CR0_WP != 0;
        let refused = (self.purpose.user && self.rights & USER == 0)
            || (self.purpose.write && read_only && protected)
            || (self.purpose.fetch && self.rights & EXECUTE_DISABLE != 0);
        if refused {
            return Err(self.fault(FAULT_PRESENT));
        }
        let offset = self.linear & (size - 1);
        Ok(Translation {
            gpa: (page & !(size - 1)) | offset,
            remaining: size - offset,
        })
    }

    fn fault(&self, present: u32) -> TranslateError {
        let mut code = present;
        if self.purpose.write {
            code |= FAULT_WRITE;
        }
        if self.purpose.user {
            code |= FAULT_USER;
        }
        // Bit 4 exists only with a feature that makes fetches differ (SDM volume 3, 5.7); NXE is the one known here.
        if self.purpose.fetch && self.paging.efer & EFER_NXE != 0 {
            code |= FAULT_FETCH;
        }
        TranslateError::PageFault(code)
    }
}
