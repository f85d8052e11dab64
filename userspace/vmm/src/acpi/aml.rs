// SPDX-License-Identifier: GPL-2.0
//! As much of AML as the DSDT needs (ACPI Specification 6.5, chapter 20.2).

const NAME_OP: u8 = 0x08;
const BYTE_PREFIX: u8 = 0x0a;
const WORD_PREFIX: u8 = 0x0b;
const DWORD_PREFIX: u8 = 0x0c;
const STRING_PREFIX: u8 = 0x0d;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXT_OP_PREFIX: u8 = 0x5b;
const DEVICE_OP: u8 = 0x82;

/// A package length followed by what it covers (20.2.4). `body` is far below the 2^28 bytes that can be encoded.
fn package_length(body: &[u8]) -> Vec<u8> {
    // The length counts its own bytes, too.
    let mut bytes = match body.len() {
        length if length + 1 < 0x40 => vec![(length + 1) as u8],
        length if length + 2 < 0x1000 => {
            let length = length + 2;
            vec![0x40 | (length & 0xf) as u8, (length >> 4) as u8]
        }
        length => {
            let length = length + 3;
            vec![
                0x80 | (length & 0xf) as u8,
                (length >> 4) as u8,
                (length >> 12) as u8,
            ]
        }
    };
    bytes.extend_from_slice(body);
    bytes
}

/// An integer constant, in its shortest form.
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        // ZeroOp and OneOp.
        0 | 1 => vec![value as u8],
        2..=0xff => vec![BYTE_PREFIX, value as u8],
        0x100..=0xffff => [&[WORD_PREFIX][..], &(value as u16).to_le_bytes()].concat(),
        _ => [&[DWORD_PREFIX][..], &value.to_le_bytes()].concat(),
    }
}

/// A string constant.
pub fn string(text: &str) -> Vec<u8> {
    [&[STRING_PREFIX][..], text.as_bytes(), &[0]].concat()
}

/// A compressed EISA id such as `PNP0501` (19.3.4): three letters, four hexadecimal digits.
pub fn eisa_id(id: &[u8; 7]) -> Vec<u8> {
    let letter = |index: usize| u32::from(id[index] - b'@') & 0x1f;
    let digits = id[3..].iter().fold(0, |value, digit| {
        value << 4 | char::from(*digit).to_digit(16).unwrap_or(0)
    });
    let value = letter(0) << 26 | letter(1) << 21 | letter(2) << 16 | digits;
    // The letters come first in memory: big-endian.
    [&[DWORD_PREFIX][..], &value.to_be_bytes()].concat()
}

/// `Name (name, value)`.
pub fn name(name: &[u8; 4], value: Vec<u8>) -> Vec<u8> {
    [&[NAME_OP][..], name, &value].concat()
}

/// `Package () {...}`.
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = [vec![elements.len() as u8], elements.concat()].concat();
    [vec![PACKAGE_OP], package_length(&body)].concat()
}

/// `Buffer () {...}`.
pub fn buffer(bytes: &[u8]) -> Vec<u8> {
    let body = [integer(bytes.len() as u32), bytes.to_vec()].concat();
    [vec![BUFFER_OP], package_length(&body)].concat()
}

/// `Device (name) {...}`.
pub fn device(name: &[u8; 4], body: &[Vec<u8>]) -> Vec<u8> {
    let body = [name.to_vec(), body.concat()].concat();
    [vec![EXT_OP_PREFIX, DEVICE_OP], package_length(&body)].concat()
}

/// `Scope (\name) {...}`.
pub fn scope(name: &[u8; 4], body: &[Vec<u8>]) -> Vec<u8> {
    let body = [&b"\\"[..], name, &body.concat()].concat();
    [vec![SCOPE_OP], package_length(&body)].concat()
}

/// A resource: ports from `port` (6.4.2.5, decoded with 16 bits).
pub fn io(port: u16, count: u8) -> Vec<u8> {
    let port = port.to_le_bytes();
    vec![0x47, 0x01, port[0], port[1], port[0], port[1], 1, count]
}

/// A resource: an edge-triggered, active-high ISA interrupt (6.4.2.1, without the flags byte).
pub fn irq_no_flags(irq: u8) -> Vec<u8> {
    let mask = 1u16.checked_shl(irq.into()).unwrap_or(0).to_le_bytes();
    vec![0x22, mask[0], mask[1]]
}

/// A resource template: resources and the end tag (6.4.2.9) with a checksum of 0, which means none.
pub fn resource_template(resources: &[Vec<u8>]) -> Vec<u8> {
    buffer(&[resources.concat(), vec![0x79, 0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_those_that_iasl_makes() {
        // What ACPICA's compiler, iasl, makes of the same source.
        assert_eq!(eisa_id(b"PNP0501"), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
        assert_eq!(
            name(b"_UID", integer(1)),
            [0x08, 0x5f, 0x55, 0x49, 0x44, 0x01]
        );
        assert_eq!(
            resource_template(&[io(0x3f8, 8), irq_no_flags(4)]),
            [
                0x11, 0x10, 0x0a, 0x0d, 0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08, 0x22, 0x10,
                0x00, 0x79, 0x00
            ]
        );
        assert_eq!(
            package(&[integer(5), integer(0), integer(0x123)]),
            [0x12, 0x08, 0x03, 0x0a, 0x05, 0x00, 0x0b, 0x23, 0x01]
        );
    }

    #[test]
    fn a_package_length_counts_itself_in_every_form() {
        for (body, form) in [(0, 1), (62, 1), (63, 2), (4093, 2), (4094, 3), (70_000, 3)] {
            let bytes = package_length(&vec![0; body]);
            assert_eq!(bytes.len(), body + form);
            let length = match form {
                1 => usize::from(bytes[0]),
                2 => usize::from(bytes[0] & 0xf) | usize::from(bytes[1]) << 4,
                _ => {
                    usize::from(bytes[0] & 0xf)
                        | usize::from(bytes[1]) << 4
                        | usize::from(bytes[2]) << 12
                }
            };
            assert_eq!(length, bytes.len());
            assert_eq!(usize::from(bytes[0] >> 6), form - 1);
        }
    }
}
