//! The segments of a JPEG file.

use std::sync::Arc;

use crate::error::ModelError;
use crate::image::decode::ImageLimits;
use crate::image::fault::{check_size, unsupported_form};
use crate::image::jpeg::damaged;
use crate::image::jpeg::entropy::Huffman;

pub(super) const BLOCK: usize = 64;
/// The place of each coefficient of a file in a block of rows.
const ZIGZAG: [u8; BLOCK] = zigzag();
const TABLES: usize = 4;

pub(super) const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

const fn zigzag() -> [u8; BLOCK] {
    let mut order = [0; BLOCK];
    let (mut row, mut column, mut index) = (0, 0, 0);
    while index < BLOCK {
        order[index] = row * 8 + column;
        let upwards = (row + column) % 2 == 0;
        match (upwards, row, column) {
            (true, _, 7) | (false, 0..7, 0) => row += 1,
            (true, 0, _) | (false, 7, _) => column += 1,
            (true, ..) => {
                row -= 1;
                column += 1;
            }
            (false, ..) => {
                row += 1;
                column -= 1;
            }
        }
        index += 1;
    }
    order
}

/// The place in a block of a coefficient under its number in the file.
pub(super) fn place(number: usize) -> usize {
    usize::from(ZIGZAG[number])
}

/// One of the planes that make up the picture.
#[derive(Debug, Clone)]
pub(super) struct Component {
    pub(super) identifier: u8,
    /// Samples across and down in each unit of the picture.
    pub(super) across: usize,
    pub(super) down: usize,
    table: usize,
    /// Size in samples.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Size in blocks, filled up to whole units.
    pub(super) blocks_across: usize,
    pub(super) blocks_down: usize,
    /// The quantisation that was in force at the component's first scan.
    pub(super) quantisation: Option<Arc<[u16; BLOCK]>>,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    /// The largest sampling factors.
    pub(super) across: usize,
    pub(super) down: usize,
    /// Units across and down.
    pub(super) units_across: usize,
    pub(super) units_down: usize,
}

/// What a scan codes, and with what.
#[derive(Debug)]
pub(super) struct Scan {
    /// Component, table of DC codes, table of AC codes.
    pub(super) parts: Vec<ScanPart>,
    /// First and last coefficient.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Bits that an earlier scan left, 0 for none, and that this one leaves.
    pub(super) from_bit: u32,
    pub(super) to_bit: u32,
    /// Units between restarts; 0 is none.
    pub(super) restart: usize,
}

#[derive(Debug)]
pub(super) struct ScanPart {
    pub(super) component: usize,
    pub(super) dc: Option<Arc<Huffman>>,
    pub(super) ac: Option<Arc<Huffman>>,
}

/// What stands before a scan.
pub(super) enum Event {
    Scan(Scan),
    End,
}

/// A reader of segments, and what they have said so far.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) frame: Option<Frame>,
    quantisation: [Option<Arc<[u16; BLOCK]>>; TABLES],
    dc: [Option<Arc<Huffman>>; TABLES],
    ac: [Option<Arc<Huffman>>; TABLES],
    restart: usize,
    pub(super) has_jfif: bool,
    /// Colour transform as Adobe's segment gives it.
    pub(super) adobe: Option<u8>,
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<&'a [u8]>,
}

impl<'a> Reader<'a> {
    /// `bytes` begin with the marker of a picture's start.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 2,
            frame: None,
            quantisation: Default::default(),
            dc: Default::default(),
            ac: Default::default(),
            restart: 0,
            has_jfif: false,
            adobe: None,
            exif: None,
            xmp: None,
        }
    }

    /// Reads on to the next scan or the end. What lies between segments is skipped.
    pub(super) fn next(&mut self, limits: &ImageLimits) -> Result<Event, ModelError> {
        loop {
            let marker = self.marker()?;
            match marker {
                END_OF_IMAGE => return Ok(Event::End),
                0x01 | 0xd0..=0xd8 => continue,
                _ => {}
            }
            let segment = self.segment()?;
            match marker {
                START_OF_SCAN => return self.scan(segment).map(Event::Scan),
                0xc0..=0xc2 => self.frame(segment, marker == 0xc2, limits)?,
                0xc4 => self.huffman_tables(segment)?,
                0xc9..=0xca => return Err(unsupported_form("JPEG with arithmetic coding")),
                0xc3 | 0xc5..=0xc7 | 0xcb | 0xcd..=0xcf => {
                    return Err(unsupported_form("lossless or hierarchical JPEG"));
                }
                0xdb => self.quantisation_tables(segment)?,
                0xdd => {
                    let [high, low] = segment else {
                        return Err(damaged("its restart interval is cut off"));
                    };
                    self.restart = usize::from(u16::from_be_bytes([*high, *low]));
                }
                0xe0 => self.has_jfif |= segment.starts_with(b"JFIF\0"),
                0xe1 => self.metadata(segment),
                0xee if segment.starts_with(b"Adobe") && segment.len() >= 12 => {
                    self.adobe = Some(segment[11]);
                }
                _ => {}
            }
        }
    }

    fn marker(&mut self) -> Result<u8, ModelError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = rest
            .windows(2)
            .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))
            .ok_or_else(|| damaged("it ends too early"))?;
        self.at += found + 2;
        Ok(rest[found + 1])
    }

    fn segment(&mut self) -> Result<&'a [u8], ModelError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let segment = match rest {
            [high, low, ..] => rest.get(2..usize::from(u16::from_be_bytes([*high, *low]))),
            _ => None,
        };
        let segment = segment.ok_or_else(|| damaged("it ends within a segment"))?;
        self.at += segment.len() + 2;
        Ok(segment)
    }

    /// Only what stands before the first scan counts, as in Pillow.
    fn metadata(&mut self, segment: &'a [u8]) {
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        if let Some(body) = segment.strip_prefix(b"Exif\0\0") {
            match &mut self.exif {
                Some(exif) => exif.extend_from_slice(body),
                none => *none = Some(segment.to_vec()),
            }
        } else if let Some(xmp) = segment.strip_prefix(XMP) {
            self.xmp = Some(xmp);
        }
    }

    fn quantisation_tables(&mut self, mut segment: &[u8]) -> Result<(), ModelError> {
        while let Some((head, rest)) = segment.split_first() {
            let bytes = if head >> 4 == 0 { 1 } else { 2 };
            let (Some(values), 0..TABLES) = (rest.get(..BLOCK * bytes), usize::from(head & 15))
            else {
                return Err(damaged("a table of its quantisation is cut off"));
            };
            let mut table = [0; BLOCK];
            for (number, value) in values.chunks_exact(bytes).enumerate() {
                let join = |value: u16, byte: &u8| value << 8 | u16::from(*byte);
                table[place(number)] = value.iter().fold(0, join);
            }
            self.quantisation[usize::from(head & 15)] = Some(Arc::new(table));
            segment = &rest[BLOCK * bytes..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Result<(), ModelError> {
        while let Some((head, rest)) = segment.split_first() {
            let cut_off = || damaged("a table of codes is cut off");
            let counts: &[u8; 16] = rest.first_chunk().ok_or_else(cut_off)?;
            let total = counts
                .iter()
                .map(|count| usize::from(*count))
                .sum::<usize>();
            let symbols = rest.get(16..16 + total).ok_or_else(cut_off)?;
            let (is_ac, number) = (head >> 4, usize::from(head & 15));
            if is_ac > 1 || number >= TABLES || total > 256 {
                return Err(damaged("a table of codes has a number that does not exist"));
            }
            let table = Huffman::new(counts, symbols)?;
            if is_ac == 0 && table.has_symbol_above(15) {
                return Err(damaged("a table of codes has impossible symbols"));
            }
            let tables = if is_ac == 1 {
                &mut self.ac
            } else {
                &mut self.dc
            };
            tables[number] = Some(Arc::new(table));
            segment = &rest[16 + total..];
        }
        Ok(())
    }

    fn frame(
        &mut self,
        segment: &[u8],
        progressive: bool,
        limits: &ImageLimits,
    ) -> Result<(), ModelError> {
        if self.frame.is_some() {
            return Err(damaged("it has two frames"));
        }
        let Some((&[bits, h1, h0, w1, w0, count], parts)) = segment.split_first_chunk() else {
            return Err(damaged("its frame is cut off"));
        };
        if bits != 8 {
            return Err(unsupported_form(format_args!("JPEG of {bits} bits")));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported_form(format_args!("JPEG of {count} components")));
        }
        if parts.len() != 3 * usize::from(count) {
            return Err(damaged("its frame is cut off"));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        check_size("JPEG", width.into(), height.into(), limits)?;
        let frame = Frame::new(progressive, width.into(), height.into(), parts)?;
        // Each block takes at least one bit in the file.
        if frame.blocks() > self.bytes.len() * 8 {
            return Err(damaged(format_args!(
                "it is too short for the {width} x {height} pixels that it declares"
            )));
        }
        self.frame = Some(frame);
        Ok(())
    }

    fn scan(&mut self, segment: &[u8]) -> Result<Scan, ModelError> {
        let cut_off = || damaged("the header of a scan is cut off");
        let Some(frame) = &mut self.frame else {
            return Err(damaged("a scan comes before the frame"));
        };
        let (count, rest) = segment.split_first().ok_or_else(cut_off)?;
        let count = usize::from(*count);
        if count == 0 || count > frame.components.len() || rest.len() != 2 * count + 3 {
            return Err(cut_off());
        }
        let mut parts: Vec<ScanPart> = Vec::with_capacity(count);
        for pair in rest[..2 * count].chunks_exact(2) {
            let component = frame
                .components
                .iter()
                .position(|component| component.identifier == pair[0])
                .filter(|index| parts.iter().all(|part| part.component != *index))
                .ok_or_else(|| damaged("a scan has a component that the frame has not"))?;
            let entry = &mut frame.components[component];
            if entry.quantisation.is_none() {
                let table = &self.quantisation[entry.table];
                let absent = || damaged("a table of its quantisation is absent");
                entry.quantisation = Some(Arc::clone(table.as_ref().ok_or_else(absent)?));
            }
            let table = |tables: &[Option<Arc<Huffman>>; TABLES], number: u8| {
                tables.get(usize::from(number)).cloned().flatten()
            };
            parts.push(ScanPart {
                component,
                dc: table(&self.dc, pair[1] >> 4),
                ac: table(&self.ac, pair[1] & 15),
            });
        }
        // A sequential scan has all coefficients, whatever its header says.
        let [first, last, bits] = if frame.progressive {
            [rest[2 * count], rest[2 * count + 1], rest[2 * count + 2]]
        } else {
            [0, 63, 0]
        };
        let scan = Scan {
            parts,
            first: first.into(),
            last: last.into(),
            from_bit: u32::from(bits >> 4),
            to_bit: u32::from(bits & 15),
            restart: self.restart,
        };
        scan.check(frame)
    }
}

impl Frame {
    /// `parts` has three bytes a component.
    fn new(
        progressive: bool,
        width: usize,
        height: usize,
        parts: &[u8],
    ) -> Result<Self, ModelError> {
        let factors = parts
            .chunks_exact(3)
            .map(|part| (part[1] >> 4, part[1] & 15));
        let across = usize::from(factors.clone().map(|factor| factor.0).max().unwrap_or(1));
        let down = usize::from(factors.clone().map(|factor| factor.1).max().unwrap_or(1));
        if factors
            .clone()
            .any(|(h, v)| !(1..=4).contains(&h) || !(1..=4).contains(&v))
        {
            return Err(damaged("its sampling factors are impossible"));
        }
        let units_across = width.div_ceil(8 * across);
        let units_down = height.div_ceil(8 * down);
        let component = |part: &[u8]| {
            let (h, v) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            if across % h != 0 || down % v != 0 {
                return Err(unsupported_form("JPEG with fractional sampling"));
            }
            if usize::from(part[2]) >= TABLES {
                return Err(damaged("a table of its quantisation is absent"));
            }
            Ok(Component {
                identifier: part[0],
                across: h,
                down: v,
                table: part[2].into(),
                width: (width * h).div_ceil(across),
                height: (height * v).div_ceil(down),
                blocks_across: units_across * h,
                blocks_down: units_down * v,
                quantisation: None,
            })
        };
        Ok(Self {
            progressive,
            width,
            height,
            components: parts
                .chunks_exact(3)
                .map(component)
                .collect::<Result<_, _>>()?,
            across,
            down,
            units_across,
            units_down,
        })
    }

    /// Blocks that hold samples of the picture.
    fn blocks(&self) -> usize {
        let blocks = |part: &Component| part.width.div_ceil(8) * part.height.div_ceil(8);
        self.components.iter().map(blocks).sum()
    }
}

impl Scan {
    fn check(self, frame: &Frame) -> Result<Self, ModelError> {
        let blocks = |part: &ScanPart| {
            let component = &frame.components[part.component];
            component.across * component.down
        };
        if self.parts.len() > 1 && self.parts.iter().map(blocks).sum::<usize>() > 10 {
            return Err(damaged("a scan has too many blocks in a unit"));
        }
        let refines = self.from_bit == 0 || self.from_bit == self.to_bit + 1;
        let band = if self.first == 0 {
            self.last == 0
        } else {
            self.last >= self.first && self.last < BLOCK && self.parts.len() == 1
        };
        if frame.progressive && !(band && refines && self.to_bit <= 13) {
            return Err(damaged("the header of a scan is impossible"));
        }
        let needs_dc = self.first == 0 && self.from_bit == 0;
        let needs_ac = self.last > 0;
        let lacks =
            |part: &ScanPart| (needs_dc && part.dc.is_none()) || (needs_ac && part.ac.is_none());
        if self.parts.iter().any(lacks) {
            return Err(damaged("a table of codes is absent"));
        }
        Ok(self)
    }
}
