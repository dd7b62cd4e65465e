//! Bits and Huffman codes of a scan.

use crate::error::ModelError;
use crate::image::jpeg::damaged;

/// Codes up to this length are looked up at once.
const QUICK_BITS: u32 = 9;
const LONGEST_CODE: usize = 16;

/// A table of Huffman codes (ITU-T T.81, annex C).
#[derive(Debug, Clone)]
pub(super) struct Huffman {
    /// For each beginning of `QUICK_BITS`: the code's length (0: it is longer) and its symbol.
    quick: Vec<(u8, u8)>,
    /// For each length: the first number of 16 bits that is beyond its codes.
    beyond: [u32; LONGEST_CODE + 1],
    /// For each length: what leads from a code to its symbol's index.
    offset: [i32; LONGEST_CODE + 1],
    symbols: Vec<u8>,
}

impl Huffman {
    /// `counts` says how many codes of 1, 2, ... 16 bits there are.
    pub(super) fn new(counts: &[u8; LONGEST_CODE], symbols: &[u8]) -> Result<Self, ModelError> {
        let mut table = Self {
            quick: vec![(0, 0); 1 << QUICK_BITS],
            beyond: [0; LONGEST_CODE + 1],
            offset: [0; LONGEST_CODE + 1],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0_u32, 0_usize);
        for length in 1..=LONGEST_CODE {
            let count = usize::from(counts[length - 1]);
            table.offset[length] = index as i32 - code as i32;
            if code as usize + count > 1 << length {
                return Err(damaged("a table of codes contradicts itself"));
            }
            if length as u32 <= QUICK_BITS {
                let spread = 1 << (QUICK_BITS - length as u32);
                for symbol in &symbols[index..index + count] {
                    let start = code as usize * spread;
                    table.quick[start..start + spread].fill((length as u8, *symbol));
                    code += 1;
                }
            } else {
                code += count as u32;
            }
            index += count;
            table.beyond[length] = code << (LONGEST_CODE - length);
            code <<= 1;
        }
        Ok(table)
    }

    pub(super) fn has_symbol_above(&self, largest: u8) -> bool {
        self.symbols.iter().any(|symbol| *symbol > largest)
    }
}

/// Reads the bits of a scan, most significant first, up to the next marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bits not yet taken, from the top.
    buffer: u64,
    available: u32,
    /// Zero bits at the end of the buffer that the file does not have.
    invented: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            buffer: 0,
            available: 0,
            invented: 0,
        }
    }

    /// Makes at least 48 bits available, with zeros after the end of the data.
    fn refill(&mut self) {
        while self.available <= 48 {
            if let Some(word) = self.bytes.get(self.at..self.at + 2)
                && word[0] != 0xff
                && word[1] != 0xff
            {
                let word = u64::from(word[0]) << 8 | u64::from(word[1]);
                self.buffer |= word << (48 - self.available);
                self.available += 16;
                self.at += 2;
                continue;
            }
            let byte = match self.bytes.get(self.at) {
                Some(0xff) if self.bytes.get(self.at + 1) == Some(&0) => {
                    self.at += 2;
                    0xff
                }
                Some(0xff) | None => {
                    self.invented += 8;
                    0
                }
                Some(byte) => {
                    self.at += 1;
                    *byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.available);
            self.available += 8;
        }
    }

    fn skip(&mut self, count: u32) {
        self.buffer <<= count;
        self.available -= count;
    }

    /// The next symbol. Its value bits, 16 at most, may be taken without a refill.
    pub(super) fn symbol(&mut self, table: &Huffman) -> Result<u8, ModelError> {
        if self.available < 32 {
            self.refill();
        }
        let (length, symbol) = table.quick[(self.buffer >> (64 - QUICK_BITS)) as usize];
        if length > 0 {
            self.skip(u32::from(length));
            return Ok(symbol);
        }
        let next = (self.buffer >> 48) as u32;
        for length in QUICK_BITS as usize + 1..=LONGEST_CODE {
            if next < table.beyond[length] {
                let code = (next >> (LONGEST_CODE - length)) as i32;
                self.skip(length as u32);
                return Ok(table.symbols[(code + table.offset[length]) as usize]);
            }
        }
        Err(damaged("its data have a code that is in no table"))
    }

    /// The next `count` bits as a number; at most 16.
    pub(super) fn take(&mut self, count: u32) -> i32 {
        if count == 0 {
            return 0;
        }
        if self.available < count {
            self.refill();
        }
        let value = (self.buffer >> (64 - count)) as i32;
        self.skip(count);
        value
    }

    /// A value of so many bits: those that begin with 0 are negative.
    pub(super) fn magnitude(&mut self, count: u32) -> i32 {
        if count == 0 {
            return 0;
        }
        let value = self.take(count);
        if value < 1 << (count - 1) {
            value - (1 << count) + 1
        } else {
            value
        }
    }

    /// Fails when bits were taken that the file does not have.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        if self.invented > self.available {
            return Err(damaged("its data end too early"));
        }
        Ok(())
    }

    /// Where to look for the marker that ends these bits.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}
