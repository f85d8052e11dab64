// SPDX-License-Identifier: GPL-2.0
//! vCPU, chipset, clock and device state in the stream's own types, and their conversion from and to the ioctl
//! structures.
//!
//! Place on the path: capture -> *here* -> stream -> *here* -> restore. The conversions name every field of the ioctl
//! structure: a new field there does not compile here until somebody has decided how it moves. Reserved fields do not.

use crate::vm::CapturedDevice;
use pvmm_uapi::{
    ChipsetState, Clock, DescriptorTable, IoApicState, LocalApicState, MsrEntry, Segment,
    StateRecord, VcpuState, IOAPIC_PINS, MAX_MSRS, MAX_STATE_RECORDS, XSAVE_SIZE,
};
use serde::{Deserialize, Serialize};

/// A segment register; see [`pvmm_uapi::Segment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    base: u64,
    limit: u32,
    access_rights: u32,
    selector: u16,
}

impl From<&Segment> for SegmentRecord {
    fn from(segment: &Segment) -> Self {
        let Segment {
            base,
            limit,
            access_rights,
            selector,
            reserved: _,
        } = *segment;
        Self {
            base,
            limit,
            access_rights,
            selector,
        }
    }
}

impl From<&SegmentRecord> for Segment {
    fn from(record: &SegmentRecord) -> Self {
        Self {
            base: record.base,
            limit: record.limit,
            access_rights: record.access_rights,
            selector: record.selector,
            reserved: [0; 3],
        }
    }
}

/// GDTR or IDTR; see [`pvmm_uapi::DescriptorTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    base: u64,
    limit: u32,
}

impl From<&DescriptorTable> for TableRecord {
    fn from(table: &DescriptorTable) -> Self {
        let DescriptorTable {
            base,
            limit,
            reserved: _,
        } = *table;
        Self { base, limit }
    }
}

impl From<&TableRecord> for DescriptorTable {
    fn from(record: &TableRecord) -> Self {
        Self {
            base: record.base,
            limit: record.limit,
            reserved: 0,
        }
    }
}

/// A local APIC; see [`pvmm_uapi::LocalApicState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalApicRecord {
    apic_base: u64,
    tsc_deadline: u64,
    timer_start_ns: u64,
    registers: Vec<u32>,
}

impl From<&LocalApicState> for LocalApicRecord {
    fn from(state: &LocalApicState) -> Self {
        let LocalApicState {
            apic_base,
            tsc_deadline,
            timer_start_ns,
            ref registers,
        } = *state;
        Self {
            apic_base,
            tsc_deadline,
            timer_start_ns,
            registers: registers.to_vec(),
        }
    }
}

/// A vCPU; see [`pvmm_uapi::VcpuState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuRecord {
    /// Its number.
    pub vcpu: u32,
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    dr: [u64; 4],
    dr6: u64,
    dr7: u64,
    efer: u64,
    xcr0: u64,
    segments: [SegmentRecord; 8],
    gdtr: TableRecord,
    idtr: TableRecord,
    event: u32,
    event_error_code: u32,
    event_instruction_length: u32,
    interruptibility: u32,
    activity: u32,
    nmi_pending: u32,
    pending_debug: u64,
    msrs: Vec<(u32, u64)>,
    apic: LocalApicRecord,
    xsave: Vec<u8>,
}

impl VcpuRecord {
    /// The record of a captured vCPU.
    ///
    /// # Errors
    ///
    /// The state says that it has more MSRs than fit into it.
    pub fn new(vcpu: u32, state: &VcpuState) -> Result<Self, String> {
        let VcpuState {
            gpr,
            rip,
            rflags,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            dr,
            dr6,
            dr7,
            efer,
            xcr0,
            ref segments,
            ref gdtr,
            ref idtr,
            event,
            event_error_code,
            event_instruction_length,
            interruptibility,
            activity,
            nmi_pending,
            pending_debug,
            msr_count,
            reserved: _,
            ref msrs,
            ref apic,
            ref xsave,
        } = *state;
        let msrs = msrs
            .get(..msr_count as usize)
            .ok_or_else(|| format!("vCPU {vcpu} has {msr_count} MSRs, {MAX_MSRS} are possible"))?;
        Ok(Self {
            vcpu,
            gpr,
            rip,
            rflags,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            dr,
            dr6,
            dr7,
            efer,
            xcr0,
            segments: std::array::from_fn(|index| (&segments[index]).into()),
            gdtr: gdtr.into(),
            idtr: idtr.into(),
            event,
            event_error_code,
            event_instruction_length,
            interruptibility,
            activity,
            nmi_pending,
            pending_debug,
            msrs: msrs.iter().map(|msr| (msr.index, msr.value)).collect(),
            apic: apic.into(),
            xsave: xsave.to_vec(),
        })
    }

    /// The ioctl structure.
    ///
    /// # Errors
    ///
    /// An array has another length than it can have. Everything else is checked by the module.
    pub fn to_state(&self) -> Result<VcpuState, String> {
        if self.msrs.len() > MAX_MSRS {
            return Err(format!("{} MSRs, {MAX_MSRS} are possible", self.msrs.len()));
        }
        let mut msrs = [MsrEntry::default(); MAX_MSRS];
        for (place, (index, value)) in msrs.iter_mut().zip(&self.msrs) {
            place.index = *index;
            place.value = *value;
        }
        let registers = self
            .apic
            .registers
            .as_slice()
            .try_into()
            .map_err(|_| format!("a local APIC of {} registers", self.apic.registers.len()))?;
        let xsave = self.xsave.as_slice().try_into().map_err(|_| {
            format!(
                "an XSAVE image of {} bytes, {XSAVE_SIZE} are due",
                self.xsave.len()
            )
        })?;
        Ok(VcpuState {
            gpr: self.gpr,
            rip: self.rip,
            rflags: self.rflags,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            efer: self.efer,
            xcr0: self.xcr0,
            segments: std::array::from_fn(|index| (&self.segments[index]).into()),
            gdtr: (&self.gdtr).into(),
            idtr: (&self.idtr).into(),
            event: self.event,
            event_error_code: self.event_error_code,
            event_instruction_length: self.event_instruction_length,
            interruptibility: self.interruptibility,
            activity: self.activity,
            nmi_pending: self.nmi_pending,
            pending_debug: self.pending_debug,
            // At most MAX_MSRS, see above.
            msr_count: self.msrs.len() as u32,
            reserved: 0,
            msrs,
            apic: LocalApicState {
                apic_base: self.apic.apic_base,
                tsc_deadline: self.apic.tsc_deadline,
                timer_start_ns: self.apic.timer_start_ns,
                registers,
            },
            xsave,
        })
    }
}

/// The chipset; see [`pvmm_uapi::ChipsetState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsetRecord {
    redirection: [u64; IOAPIC_PINS],
    select: u32,
    id: u32,
    levels: u32,
    pending: u32,
    pm1_event: u32,
    pm1_control: u32,
    isa_levels: u32,
}

impl From<&ChipsetState> for ChipsetRecord {
    fn from(state: &ChipsetState) -> Self {
        let ChipsetState {
            ioapic:
                IoApicState {
                    redirection,
                    select,
                    id,
                    levels,
                    pending,
                },
            pm1_event,
            pm1_control,
            isa_levels,
            reserved: _,
        } = *state;
        Self {
            redirection,
            select,
            id,
            levels,
            pending,
            pm1_event,
            pm1_control,
            isa_levels,
        }
    }
}

impl From<&ChipsetRecord> for ChipsetState {
    fn from(record: &ChipsetRecord) -> Self {
        Self {
            ioapic: IoApicState {
                redirection: record.redirection,
                select: record.select,
                id: record.id,
                levels: record.levels,
                pending: record.pending,
            },
            pm1_event: record.pm1_event,
            pm1_control: record.pm1_control,
            isa_levels: record.isa_levels,
            reserved: 0,
        }
    }
}

/// The guest's time at the pause; see [`pvmm_uapi::Clock`]. A record of its own: see [`crate::clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    vm_ns: u64,
    tsc: u64,
    tsc_khz: u32,
}

impl From<&Clock> for ClockRecord {
    fn from(clock: &Clock) -> Self {
        let Clock {
            vm_ns,
            tsc,
            tsc_khz,
            flags: _,
        } = *clock;
        Self {
            vm_ns,
            tsc,
            tsc_khz,
        }
    }
}

impl From<&ClockRecord> for Clock {
    fn from(record: &ClockRecord) -> Self {
        Self {
            vm_ns: record.vm_ns,
            tsc: record.tsc,
            tsc_khz: record.tsc_khz,
            flags: 0,
        }
    }
}

/// One item of a device's state; see [`pvmm_uapi::StateRecord`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemRecord {
    register: u16,
    origin: u8,
    range: u8,
    width: u8,
    offset: u64,
    value: u64,
}

/// The state of a recorded device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Its number.
    pub device: u32,
    kind: u32,
    version: u32,
    items: Vec<ItemRecord>,
}

impl DeviceRecord {
    /// The record of a captured device.
    ///
    /// # Errors
    ///
    /// It has more items than a state may have.
    pub fn new(device: u32, captured: &CapturedDevice) -> Result<Self, String> {
        check_count(device, captured.records.len())?;
        let items = captured.records.iter().map(|record| {
            let StateRecord {
                register,
                origin,
                range,
                width,
                reserved: _,
                offset,
                value,
            } = *record;
            ItemRecord {
                register,
                origin,
                range,
                width,
                offset,
                value,
            }
        });
        Ok(Self {
            device,
            kind: captured.kind,
            version: captured.version,
            items: items.collect(),
        })
    }

    /// The captured state.
    ///
    /// # Errors
    ///
    /// It has more items than a state may have.
    pub fn to_captured(&self) -> Result<CapturedDevice, String> {
        check_count(self.device, self.items.len())?;
        let records = self.items.iter().map(|item| StateRecord {
            register: item.register,
            origin: item.origin,
            range: item.range,
            width: item.width,
            reserved: [0; 3],
            offset: item.offset,
            value: item.value,
        });
        Ok(CapturedDevice {
            kind: self.kind,
            version: self.version,
            records: records.collect(),
        })
    }
}

fn check_count(device: u32, count: usize) -> Result<(), String> {
    if count > MAX_STATE_RECORDS as usize {
        return Err(format!(
            "the state of device {device} has {count} items, {MAX_STATE_RECORDS} are possible"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::message::{Kind, Payload};

    /// A state in which every 8-byte word differs, so that swapped fields show.
    fn vcpu() -> VcpuState {
        use pvmm_uapi::Pod;
        let mut state = VcpuState::default();
        for (index, byte) in state.as_bytes_mut().iter_mut().enumerate() {
            *byte = (index / 8 * 31 + index) as u8;
        }
        state.msr_count = MAX_MSRS as u32;
        state.reserved = 0;
        state.gdtr.reserved = 0;
        state.idtr.reserved = 0;
        for segment in &mut state.segments {
            segment.reserved = [0; 3];
        }
        for msr in &mut state.msrs {
            msr.reserved = 0;
        }
        state
    }

    #[test]
    fn a_vcpu_arrives_as_it_left_and_fits_its_record() {
        let state = vcpu();
        let record = VcpuRecord::new(0, &state).expect("its counts are right");
        let bytes = codec::encode(&record).expect("it is short");
        assert!(
            bytes.len() <= Kind::Vcpu.limit() as usize,
            "{}",
            bytes.len()
        );
        let back: VcpuRecord = codec::decode(&bytes).expect("we wrote it");
        assert_eq!(back.to_state().expect("its lengths are right"), state);
    }

    #[test]
    fn chipset_and_clock_arrive_as_they_left() {
        use pvmm_uapi::Pod;
        let mut chipset = ChipsetState::default();
        for (index, byte) in chipset.as_bytes_mut().iter_mut().enumerate() {
            *byte = index as u8;
        }
        chipset.reserved = 0;
        let record = ChipsetRecord::from(&chipset);
        assert_eq!(ChipsetState::from(&record), chipset);
        let bytes = codec::encode(&record).expect("it is short");
        assert!(bytes.len() <= ChipsetRecord::KIND.limit() as usize);

        let clock = Clock {
            vm_ns: 1,
            tsc: 2,
            tsc_khz: 3,
            flags: 0,
        };
        assert_eq!(Clock::from(&ClockRecord::from(&clock)), clock);
    }

    #[test]
    fn a_device_state_of_the_highest_count_fits_its_record_and_one_more_is_refused() {
        let mut captured = CapturedDevice {
            kind: 3,
            version: 1,
            records: vec![
                StateRecord {
                    register: 1,
                    origin: 2,
                    range: 3,
                    width: 4,
                    reserved: [0; 3],
                    offset: 5,
                    value: 6,
                };
                MAX_STATE_RECORDS as usize
            ],
        };
        let record = DeviceRecord::new(9, &captured).expect("the count is right");
        let bytes = codec::encode(&record).expect("it is short");
        assert!(bytes.len() <= Kind::Device.limit() as usize);
        assert_eq!(record.to_captured().as_ref(), Ok(&captured));
        captured.records.push(StateRecord::default());
        assert!(DeviceRecord::new(9, &captured).is_err());
    }

    #[test]
    fn arrays_of_a_wrong_length_are_refused() {
        let good = VcpuRecord::new(0, &vcpu()).expect("its counts are right");
        let mut record = good.clone();
        record.xsave.pop();
        assert!(record.to_state().is_err());
        let mut record = good.clone();
        record.apic.registers.push(0);
        assert!(record.to_state().is_err());
        let mut record = good;
        record.msrs.push((0, 0));
        assert!(record.to_state().is_err());
        let state = VcpuState {
            msr_count: MAX_MSRS as u32 + 1,
            ..VcpuState::default()
        };
        assert!(VcpuRecord::new(0, &state).is_err());
    }
}
