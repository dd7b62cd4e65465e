//! The layout of packed codes: blocks of 32 codes of 4-bit sub-codes, as
//! `pq4_pack_codes` of FAISS writes them with `bbs` = 32.
//!
//! In row form, byte `i` of a code holds the sub-codes `2 i` (lower half) and
//! `2 i + 1`. A block has 32 bytes for each byte of a code: 16 for the even
//! sub-code of all 32 codes, then 16 for the odd one. Such a byte holds the
//! sub-codes of slot `s` (lower half) and of slot `s + 16`; slots 0 to 7 are at
//! the even bytes and slots 8 to 15 at the odd ones, so that the sums of bytes
//! that AVX2 makes fall apart into two runs of slots.

/// Codes in a block.
pub(crate) const SLOTS: usize = 32;

/// Bytes of a block for each byte of a code.
pub(crate) const LANE: usize = 32;

/// More sub-codes than this would not leave enough of a sum of 16 bits to each.
pub(crate) const MOST_SUB_CODES: usize = 1 << 15;

/// Bytes of a block of codes of `code_size` bytes.
pub(crate) const fn block_size(code_size: usize) -> usize {
    code_size * LANE
}

/// The number of sub-codes of a code, rounded up to an even number.
pub(crate) const fn sub_codes(code_size: usize) -> usize {
    code_size * 2
}

/// The byte of the first half of a lane that holds a slot, and the position of its
/// bits there.
fn place(slot: usize) -> (usize, u32) {
    assert!(slot < SLOTS, "slot {slot} of a block of {SLOTS}");
    let row = slot % 16;
    let byte = if row < 8 { 2 * row } else { 2 * (row - 8) + 1 };
    (byte, if slot < 16 { 0 } else { 4 })
}

/// Puts a code in row form at a slot of a block.
pub(crate) fn pack(block: &mut [u8], slot: usize, code: &[u8]) {
    let (byte, shift) = place(slot);
    for (lane, code) in block.chunks_exact_mut(LANE).zip(code) {
        for (at, sub_code) in [(byte, code & 15), (byte + 16, code >> 4)] {
            lane[at] = lane[at] & !(15 << shift) | sub_code << shift;
        }
    }
}

/// Writes the code at a slot of a block in row form.
pub(crate) fn unpack(block: &[u8], slot: usize, code: &mut [u8]) {
    let (byte, shift) = place(slot);
    for (lane, code) in block.chunks_exact(LANE).zip(code) {
        let sub_code = |at: usize| lane[at] >> shift & 15;
        *code = sub_code(byte) | sub_code(byte + 16) << 4;
    }
}
