//! Small indexes in memory.

use ivf_store::{
    Distance, Element, Extent, ListWriter, MemoryStore, Meta, PageKind, PageStore, RecallCurve,
    Tid, write_directory, write_extent,
};

/// What an index is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub dimensions: u32,
    pub element: Element,
    pub distance: Distance,
    pub lists: u32,
}

impl Shape {
    /// An index of 32-bit floats.
    pub const fn floats(dimensions: u32, lists: u32) -> Self {
        Self {
            dimensions,
            element: Element::Float32,
            distance: Distance::L2,
            lists,
        }
    }
}

/// A code of its own for each `seed`.
pub fn code(meta: &Meta, seed: u64) -> Vec<u8> {
    (0..meta.layout().code_size())
        .map(|i| (seed.wrapping_mul(31).wrapping_add(i as u64)) as u8)
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
        lists: shape.lists,
        generation: 1,
        stamp: 77,
        training_rows: rows.len() as u64,
        trained_at: 5,
        centroids: Extent::NONE,
        directory: Extent::NONE,
        recall: Extent::NONE,
    };
    store.append(&meta.to_page()).unwrap();
    if shape.lists > 1 {
        let bytes = vec![7; shape.lists as usize * shape.dimensions as usize * 4];
        meta.centroids = write_extent(&store, PageKind::Centroids, &bytes).unwrap();
        let curve = RecallCurve::unmeasured(shape.lists);
        meta.recall = curve.append(&store).unwrap();
    }
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    let mut writer = ListWriter::new(&store, meta.layout());
    for (list, number) in sorted {
        let code = code(&meta, number.into());
        writer.push(list, tid(number), &code).unwrap();
    }
    meta.directory = write_directory(&store, &writer.finish(shape.lists).unwrap()).unwrap();
    meta.write(&store).unwrap();
    (store, meta)
}
