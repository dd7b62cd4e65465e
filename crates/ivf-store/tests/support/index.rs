//! Small indexes in memory.

use ivf_store::{
    Codes, Distance, Element, Extent, ListLayout, ListWriter, MemoryStore, Meta, PageKind,
    PageStore, RecallCurve, RefineCodes, Tid, write_directory, write_extent,
};

/// What an index is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub dimensions: u32,
    pub element: Element,
    pub distance: Distance,
    pub codes: Codes,
    pub lists: u32,
}

impl Shape {
    /// An index of 32-bit floats.
    pub const fn floats(dimensions: u32, lists: u32) -> Self {
        Self {
            dimensions,
            element: Element::Float32,
            distance: Distance::L2,
            codes: exact(4 * dimensions as usize),
            lists,
        }
    }

    /// An index with such entries.
    pub const fn of(codes: Codes, lists: u32) -> Self {
        Self {
            dimensions: 9,
            element: Element::Float16,
            distance: Distance::Cosine,
            codes,
            lists,
        }
    }
}

/// Codes that are the vectors themselves.
pub const fn exact(code_size: usize) -> Codes {
    Codes {
        code_size,
        is_packed: false,
        is_lossy: false,
        refine: None,
    }
}

/// Codes with factors.
pub const fn lossy(code_size: usize) -> Codes {
    Codes {
        is_lossy: true,
        ..exact(code_size)
    }
}

/// Packed codes with factors.
pub const fn packed(code_size: usize) -> Codes {
    Codes {
        is_packed: true,
        ..lossy(code_size)
    }
}

/// Codes with refine codes beside them.
pub const fn refined(codes: Codes, code_size: usize, is_lossy: bool) -> Codes {
    Codes {
        refine: Some(RefineCodes {
            code_size,
            is_lossy,
        }),
        ..codes
    }
}

/// A record of its own for each `seed`: code, factors, refine code, refine factors.
pub fn record(meta: &Meta, seed: u64) -> Vec<u8> {
    (0..meta.layout.record_size() as u64)
        .map(|i| {
            (seed
                .wrapping_mul(1009)
                .wrapping_add(i)
                .wrapping_mul(0x9e37_79b9)
                >> 16) as u8
        })
        .collect()
}

/// The row pointer of a row number.
pub fn tid(number: u32) -> Tid {
    Tid::new(number / 50, (number % 50 + 1) as u16)
}

/// Writes an index of `rows`, which are pairs of list and row number.
pub fn build(shape: Shape, rows: &[(u32, u32)]) -> (MemoryStore, Meta) {
    let store = MemoryStore::new();
    let mut meta = Meta {
        dimensions: shape.dimensions,
        distance: shape.distance,
        element: shape.element,
        factory: format!("Codes{}", shape.codes.code_size),
        code_dimensions: shape.dimensions.div_ceil(2),
        layout: ListLayout::new(shape.codes).unwrap(),
        lists: shape.lists,
        generation: 1,
        stamp: 77,
        training_rows: rows.len() as u64,
        trained_at: 5,
        centroids: Extent::NONE,
        directory: Extent::NONE,
        state: Extent::NONE,
        recall: Extent::NONE,
    };
    store.append(&meta.to_page()).unwrap();
    if shape.codes.is_lossy {
        meta.state = write_extent(&store, PageKind::State, &[3; 9000]).unwrap();
    }
    if shape.lists > 1 {
        let bytes = vec![7; shape.lists as usize * meta.code_dimensions as usize * 4];
        meta.centroids = write_extent(&store, PageKind::Centroids, &bytes).unwrap();
        let curve = RecallCurve::unmeasured(shape.lists);
        meta.recall = curve.append(&store).unwrap();
    }
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    let mut writer = ListWriter::new(&store, meta.layout);
    for (list, number) in sorted {
        let record = record(&meta, number.into());
        writer.push(list, tid(number), &record).unwrap();
    }
    meta.directory = write_directory(&store, &writer.finish(shape.lists).unwrap()).unwrap();
    meta.write(&store).unwrap();
    (store, meta)
}
