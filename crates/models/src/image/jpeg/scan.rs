//! Decoding of scans: to samples at once, or to coefficients that further scans
//! refine.

use crate::error::ModelError;
use crate::image::jpeg::damaged;
use crate::image::jpeg::entropy::Bits;
use crate::image::jpeg::markers::{BLOCK, Component, Frame, Scan, ScanPart, place};
use crate::image::jpeg::transform::block_to_samples;

/// The samples of a component, filled up to whole units.
pub(super) struct Plane {
    pub(super) stride: usize,
    pub(super) samples: Vec<u8>,
    /// Coefficients block by block; empty when scans are final.
    coefficients: Vec<i16>,
}

impl Plane {
    pub(super) fn new(component: &Component, progressive: bool) -> Self {
        let blocks = component.blocks_across * component.blocks_down;
        Self {
            stride: component.blocks_across * 8,
            samples: vec![0; blocks * BLOCK],
            coefficients: vec![0; if progressive { blocks * BLOCK } else { 0 }],
        }
    }

    /// Transforms the coefficients that were gathered.
    pub(super) fn finish(&mut self, component: &Component) {
        let Some(quantisation) = &component.quantisation else {
            return;
        };
        let (blocks, _) = self.coefficients.as_chunks::<BLOCK>();
        for (index, block) in blocks.iter().enumerate() {
            let at = place_of(index, component.blocks_across);
            block_to_samples(block, quantisation, &mut self.samples[at..], self.stride);
        }
        self.coefficients = Vec::new();
    }
}

/// Where the samples of a block begin.
fn place_of(block: usize, blocks_across: usize) -> usize {
    (block / blocks_across * blocks_across * 8 + block % blocks_across) * 8
}

/// What lasts from block to block between restarts.
#[derive(Default)]
struct State {
    /// The last DC value of each part of the scan.
    previous: [i32; 4],
    /// Blocks that have no further coefficients in this scan.
    empty_blocks: u32,
}

/// Decodes the scan whose data begin at `at`; gives where they end.
pub(super) fn decode_scan(
    bytes: &[u8],
    at: usize,
    frame: &Frame,
    scan: &Scan,
    planes: &mut [Plane],
) -> Result<usize, ModelError> {
    let mut bits = Bits::new(bytes, at);
    let mut state = State::default();
    let lone = match scan.parts.as_slice() {
        [part] => Some(&frame.components[part.component]),
        _ => None,
    };
    let (across, down) = lone.map_or((frame.units_across, frame.units_down), |component| {
        (component.width.div_ceil(8), component.height.div_ceil(8))
    });
    for unit in 0..across * down {
        if scan.restart > 0 && unit > 0 && unit % scan.restart == 0 {
            let marker = 0xd0 + (unit / scan.restart - 1) as u8 % 8;
            bits = Bits::new(bytes, after_restart(bytes, &bits, marker)?);
            state = State::default();
        }
        let (column, row) = (unit % across, unit / across);
        for (index, part) in scan.parts.iter().enumerate() {
            let component = &frame.components[part.component];
            let plane = &mut planes[part.component];
            let (width, height) = match lone {
                Some(_) => (1, 1),
                None => (component.across, component.down),
            };
            for inner in 0..width * height {
                let row = row * height + inner / width;
                let column = column * width + inner % width;
                let block = row * component.blocks_across + column;
                if frame.progressive {
                    let start = block * BLOCK;
                    let block = plane.coefficients[start..].first_chunk_mut::<BLOCK>();
                    let block = block.ok_or_else(|| damaged("a scan has too many blocks"))?;
                    refine_block(&mut bits, scan, part, block, &mut state, index)?;
                } else {
                    sequential_block(
                        &mut bits,
                        part,
                        component,
                        plane,
                        block,
                        &mut state.previous[index],
                    )?;
                }
            }
        }
        bits.check()?;
    }
    Ok(bits.position())
}

/// Goes on after the restart marker that must come next.
fn after_restart(bytes: &[u8], bits: &Bits, marker: u8) -> Result<usize, ModelError> {
    let rest = &bytes[bits.position()..];
    let found = rest
        .windows(2)
        .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))
        .filter(|found| rest[found + 1] == marker)
        .ok_or_else(|| damaged("a restart marker is not where it must be"))?;
    Ok(bits.position() + found + 2)
}

fn dc_difference(bits: &mut Bits, part: &ScanPart) -> Result<i32, ModelError> {
    let table = part.dc.as_deref().ok_or_else(no_table)?;
    let size = bits.symbol(table)?;
    Ok(bits.magnitude(size.into()))
}

fn no_table() -> ModelError {
    damaged("a table of codes is absent")
}

fn beyond_block() -> ModelError {
    damaged("its data have more coefficients than a block")
}

fn sequential_block(
    bits: &mut Bits,
    part: &ScanPart,
    component: &Component,
    plane: &mut Plane,
    block: usize,
    previous: &mut i32,
) -> Result<(), ModelError> {
    let mut coefficients = [0_i16; BLOCK];
    *previous = previous.wrapping_add(dc_difference(bits, part)?);
    coefficients[0] = *previous as i16;
    let table = part.ac.as_deref().ok_or_else(no_table)?;
    let mut number = 1;
    while number < BLOCK {
        let symbol = bits.symbol(table)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                break;
            }
            number += 16;
            continue;
        }
        number += run;
        if number >= BLOCK {
            return Err(beyond_block());
        }
        coefficients[place(number)] = bits.magnitude(size) as i16;
        number += 1;
    }
    if let Some(quantisation) = &component.quantisation {
        let at = place_of(block, component.blocks_across);
        block_to_samples(
            &coefficients,
            quantisation,
            &mut plane.samples[at..],
            plane.stride,
        );
    }
    Ok(())
}

/// One block of a progressive scan (ITU-T T.81, annex G).
fn refine_block(
    bits: &mut Bits,
    scan: &Scan,
    part: &ScanPart,
    block: &mut [i16; BLOCK],
    state: &mut State,
    index: usize,
) -> Result<(), ModelError> {
    match (scan.first, scan.from_bit) {
        (0, 0) => {
            let previous = &mut state.previous[index];
            *previous = previous.wrapping_add(dc_difference(bits, part)?);
            block[0] = (*previous << scan.to_bit) as i16;
            Ok(())
        }
        (0, _) => {
            block[0] |= (bits.take(1) << scan.to_bit) as i16;
            Ok(())
        }
        (_, 0) => first_ac(bits, scan, part, block, &mut state.empty_blocks),
        _ => further_ac(bits, scan, part, block, &mut state.empty_blocks),
    }
}

fn first_ac(
    bits: &mut Bits,
    scan: &Scan,
    part: &ScanPart,
    block: &mut [i16; BLOCK],
    empty_blocks: &mut u32,
) -> Result<(), ModelError> {
    if *empty_blocks > 0 {
        *empty_blocks -= 1;
        return Ok(());
    }
    let table = part.ac.as_deref().ok_or_else(no_table)?;
    let mut number = scan.first;
    while number <= scan.last {
        let symbol = bits.symbol(table)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if run < 15 {
                *empty_blocks = (1 << run) - 1 + bits.take(run as u32) as u32;
                break;
            }
            number += 16;
            continue;
        }
        number += run;
        if number > scan.last {
            return Err(beyond_block());
        }
        block[place(number)] = (bits.magnitude(size) << scan.to_bit) as i16;
        number += 1;
    }
    Ok(())
}

fn further_ac(
    bits: &mut Bits,
    scan: &Scan,
    part: &ScanPart,
    block: &mut [i16; BLOCK],
    empty_blocks: &mut u32,
) -> Result<(), ModelError> {
    let table = part.ac.as_deref().ok_or_else(no_table)?;
    let bit = 1_i16 << scan.to_bit;
    // Gives one more bit to a coefficient that is known not to be zero.
    let refine = |bits: &mut Bits, value: &mut i16| {
        if bits.take(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
        }
    };
    let mut number = scan.first;
    while *empty_blocks == 0 && number <= scan.last {
        let symbol = bits.symbol(table)?;
        let (mut run, size) = (symbol >> 4, symbol & 15);
        let mut fresh = 0;
        match size {
            0 if run < 15 => {
                *empty_blocks = (1 << run) + bits.take(run.into()) as u32;
                break;
            }
            0 => {}
            1 => fresh = if bits.take(1) == 1 { bit } else { -bit },
            _ => return Err(damaged("its data have an impossible refinement")),
        }
        while number <= scan.last {
            let value = &mut block[place(number)];
            if *value != 0 {
                refine(bits, value);
            } else if run == 0 {
                *value = fresh;
                break;
            } else {
                run -= 1;
            }
            number += 1;
        }
        number += 1;
    }
    if *empty_blocks > 0 {
        for number in number..=scan.last {
            let value = &mut block[place(number)];
            if *value != 0 {
                refine(bits, value);
            }
        }
        *empty_blocks -= 1;
    }
    Ok(())
}
