//! Sizes of entries: all that have room are laid out, all others refused.

use ivf_store::{
    BLOCK_CODES, Codes, DATA_START, FACTORS, ListLayout, PAGE_SIZE, RefineCodes, SPECIAL_START,
};

const ROOM: usize = SPECIAL_START - DATA_START;
/// Arrays begin at multiples of 8 bytes.
const GAPS: usize = 2 * 7;

fn exact(code_size: usize) -> Codes {
    Codes {
        code_size,
        is_packed: false,
        is_lossy: false,
        refine: None,
    }
}

fn lossy(code_size: usize) -> Codes {
    Codes {
        is_lossy: true,
        ..exact(code_size)
    }
}

fn packed(code_size: usize) -> Codes {
    Codes {
        is_packed: true,
        ..lossy(code_size)
    }
}

fn refined(codes: Codes, code_size: usize, is_lossy: bool) -> Codes {
    let refine = Some(RefineCodes {
        code_size,
        is_lossy,
    });
    Codes { refine, ..codes }
}

/// Checks that the arrays of a layout fit, and that no more entries would.
fn check(codes: Codes) -> Option<ListLayout> {
    let layout = ListLayout::new(codes)?;
    let step = if codes.is_packed { BLOCK_CODES } else { 1 };
    let factors = if codes.is_lossy { 4 * FACTORS } else { 0 };
    let entry = codes.code_size + factors;
    let capacity = layout.capacity();
    assert!(capacity > 0 && capacity.is_multiple_of(step));
    let size = |capacity: usize| match layout.row_capacity() {
        0 => capacity * (entry + 8),
        rows => capacity * entry + 4 * capacity.div_ceil(rows),
    };
    assert!(size(capacity) <= ROOM, "{codes:?}");
    assert!(size(capacity + step) + GAPS > ROOM, "{codes:?}");
    let Some(refine) = codes.refine else {
        assert_eq!((layout.row_capacity(), layout.row_pages()), (0, 0));
        assert_eq!(layout.record_size(), entry);
        return Some(layout);
    };
    let factors = if refine.is_lossy { 4 * FACTORS } else { 0 };
    let rows = layout.row_capacity();
    let row = refine.code_size + factors + 8;
    assert!(
        rows * row <= ROOM && (rows + 1) * row + GAPS > ROOM,
        "{codes:?}"
    );
    assert_eq!(layout.row_pages(), capacity.div_ceil(rows));
    assert_eq!(layout.record_size(), entry + refine.code_size + factors);
    for index in [0, rows - 1] {
        let parts: Vec<_> = layout.row_parts(index).collect();
        assert!(parts.iter().all(|part| part.end <= PAGE_SIZE), "{codes:?}");
        let bytes: usize = parts.iter().map(ExactSizeIterator::len).sum();
        assert_eq!(bytes, DATA_START + PAGE_SIZE - SPECIAL_START + row);
    }
    Some(layout)
}

/// The largest size up to which all fit.
fn largest(codes: impl Fn(usize) -> Codes) -> usize {
    let fits: Vec<bool> = (1..=ROOM + 1)
        .map(|size| check(codes(size)).is_some())
        .collect();
    let largest = fits.iter().filter(|fits| **fits).count();
    assert!(fits[..largest].iter().all(|fits| *fits));
    largest
}

#[test]
fn entries_of_every_size_fit_until_a_page_has_no_room_for_one() {
    assert_eq!(largest(exact), ROOM - 8);
    // Three factors take 16 bytes with the gap behind them.
    assert_eq!(largest(lossy), ROOM - 16 - 8);
    assert_eq!(largest(packed), ROOM / 32 - 12 - 8);
    // The names of row pages take less than row pointers.
    assert_eq!(
        largest(|size| refined(packed(size), 1, true)),
        ROOM / 32 - 12
    );
    assert_eq!(largest(|size| refined(exact(size), 7000, false)), ROOM - 8);
    assert_eq!(largest(|size| refined(exact(1), size, false)), ROOM - 8);
    assert_eq!(largest(|size| refined(exact(1), size, true)), ROOM - 16 - 8);
}

#[test]
fn sizes_beyond_all_bounds_are_refused() {
    for size in [0, ROOM + 1, 1 << 31, u32::MAX as usize, usize::MAX] {
        for codes in [exact(size), lossy(size), packed(size)] {
            assert_eq!(ListLayout::new(codes), None);
            assert_eq!(ListLayout::new(refined(codes, 4, false)), None);
        }
        assert_eq!(ListLayout::new(refined(exact(4), size, false)), None);
        assert_eq!(ListLayout::new(refined(packed(4), size, true)), None);
    }
}
