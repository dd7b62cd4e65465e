//! A random sample of the table's vectors, for k-means, and an estimate of how
//! many rows will be indexed. Both read random blocks of the table rather than
//! all of it. The generator has a fixed seed: the same table gives the same index.

use ivf_store::Tid;
use pgrx::{check_for_interrupts, pg_guard, pg_sys};

use crate::index::insert::tid_of;
use crate::index::opclass::OpClass;
use crate::index::random::Random;
use crate::index::report::raise_out_of_memory;

/// Blocks that are read to estimate the number of rows.
const ESTIMATE_BLOCKS: u32 = 200;
/// A sample is drawn from at least so many blocks, for neighbours in a table
/// are often alike.
const MIN_SAMPLE_BLOCKS: f64 = 2000.0;
/// A sample is drawn from so many times as many rows as it takes.
const SPREAD: f64 = 2.0;
/// Blocks that are read in one scan where all are.
const BLOCKS_TOGETHER: u32 = 128;
/// The reservoir begins with room for so many rows.
const MIN_RESERVED_ROWS: usize = 1024;
/// The squares of sums of two such vectors are still floats.
const MAX_LENGTH: f64 = 1e18;
/// This share of the rows has usual lengths; what is longer than those by the ratio is an
/// outlier.
const USUAL_SHARE: f64 = 0.99;
const OUTLIER_RATIO: f64 = 1000.0;
const SEED: u64 = 0x5eed_f155_1bf5_2026;

/// Vectors drawn from a table, as they are compared.
pub(super) struct Drawn {
    /// `(rows, dimensions)`
    pub vectors: Vec<f32>,
    /// The row that each vector is of, if it is of one.
    pub tids: Vec<Option<Tid>>,
}

impl Drawn {
    /// Vectors that are not of rows, `(rows, dimensions)`.
    pub fn of_no_rows(vectors: Vec<f32>, dimensions: u32) -> Self {
        let tids = vec![None; vectors.len() / dimensions as usize];
        Self { vectors, tids }
    }

    /// Leaves out rows of such lengths that centroids and ranges of codes would be of no
    /// use to the others: longer than [`MAX_LENGTH`], or so many times as long as nearly
    /// all rows that they can only be mistakes. Such rows are indexed as others are.
    pub fn leave_out_outliers(&mut self) {
        let dimensions = self.vectors.len() / self.tids.len().max(1);
        if dimensions == 0 {
            return;
        }
        let rows = self.vectors.chunks_exact(dimensions);
        let squares: Vec<f64> = rows.map(faiss_ivf::squared).collect();
        let mut sorted = squares.clone();
        let place = (squares.len() as f64 * USUAL_SHARE) as usize;
        let place = place.min(squares.len() - 1);
        let (_, usual, _) = sorted.select_nth_unstable_by(place, f64::total_cmp);
        let mut longest = MAX_LENGTH * MAX_LENGTH;
        if *usual > 0.0 {
            longest = longest.min(*usual * OUTLIER_RATIO * OUTLIER_RATIO);
        }
        let mut kept = 0;
        for (row, square) in squares.iter().enumerate() {
            if *square <= longest {
                self.vectors
                    .copy_within(row * dimensions..(row + 1) * dimensions, kept * dimensions);
                self.tids[kept] = self.tids[row];
                kept += 1;
            }
        }
        self.vectors.truncate(kept * dimensions);
        self.tids.truncate(kept);
    }

    /// Takes `count` of the rows out of it, by chance.
    pub fn hold_back(&mut self, count: usize) -> Self {
        let dimensions = self.vectors.len() / self.tids.len().max(1);
        let mut random = Random::new(SEED);
        let mut held = Self {
            vectors: Vec::with_capacity(count * dimensions),
            tids: Vec::with_capacity(count),
        };
        for _ in 0..count.min(self.tids.len()) {
            let row = random.below(self.tids.len() as u64) as usize;
            let last = (self.tids.len() - 1) * dimensions;
            let at = row * dimensions;
            held.vectors
                .extend_from_slice(&self.vectors[at..at + dimensions]);
            held.tids.push(self.tids.swap_remove(row));
            self.vectors.copy_within(last.., at);
            self.vectors.truncate(last);
        }
        held
    }
}

/// A reservoir of vectors.
pub(super) struct Sample {
    opclass: &'static OpClass,
    dimensions: u32,
    capacity: u64,
    random: Random,
    /// Rows that were seen and can be indexed.
    seen: u64,
    /// The reservoir, `(rows, dimensions)`.
    vectors: Vec<f32>,
    tids: Vec<Option<Tid>>,
    scratch: Vec<f32>,
}

/// The table and the index of a build.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub heap: pg_sys::Relation,
    pub index: pg_sys::Relation,
    pub info: *mut pg_sys::IndexInfo,
    pub opclass: &'static OpClass,
    pub dimensions: u32,
}

impl Source {
    /// Estimates how many rows will be indexed: exactly for a small table.
    ///
    /// # Safety
    /// The relations must be open and locked for building the index.
    pub unsafe fn estimate_rows(&self) -> f64 {
        let mut counter = self.sample_of(0);
        // SAFETY: the caller's promise.
        unsafe {
            let (mut read, blocks) = self.read_blocks(ESTIMATE_BLOCKS, &mut counter, &|_, _| ());
            // The rows of a partial index, or what deletes have left, may lie
            // in few blocks.
            if counter.seen == 0 && read < blocks {
                (read, _) = self.read_blocks(blocks, &mut counter, &|_, _| ());
            }
            match read {
                0 => 0.0,
                _ => counter.seen as f64 * f64::from(blocks) / f64::from(read),
            }
        }
    }

    /// Draws at most `capacity` vectors from a table of about `rows` rows; fewer than
    /// `least` only if the table has no more.
    ///
    /// # Safety
    /// As for [`Self::estimate_rows`].
    pub unsafe fn draw(&self, rows: f64, capacity: u64, least: u32) -> Drawn {
        // SAFETY: the caller's promise.
        unsafe { self.draw_and_tell(rows, capacity, least, &|_, _| ()) }
    }

    /// The same; `progress` is told how many blocks were read, and of how many.
    ///
    /// # Safety
    /// As for [`Self::estimate_rows`].
    pub unsafe fn draw_and_tell(
        &self,
        rows: f64,
        capacity: u64,
        least: u32,
        progress: &dyn Fn(u32, u32),
    ) -> Drawn {
        let mut sample = self.sample_of(capacity);
        // SAFETY: the caller's promise.
        unsafe {
            let blocks = f64::from(self.block_count());
            let wanted = blocks * SPREAD * capacity as f64 / rows.max(1.0);
            let wanted = wanted.max(MIN_SAMPLE_BLOCKS).min(blocks);
            let (read, blocks) = self.read_blocks(wanted.ceil() as u32, &mut sample, progress);
            if sample.seen < u64::from(least) && read < blocks {
                sample = self.sample_of(capacity);
                self.read_blocks(blocks, &mut sample, progress);
            }
        }
        Drawn {
            vectors: sample.vectors,
            tids: sample.tids,
        }
    }

    fn sample_of(&self, capacity: u64) -> Sample {
        Sample {
            opclass: self.opclass,
            dimensions: self.dimensions,
            capacity,
            random: Random::new(SEED),
            seen: 0,
            vectors: Vec::new(),
            tids: Vec::new(),
            scratch: Vec::new(),
        }
    }

    unsafe fn block_count(&self) -> u32 {
        // SAFETY: the caller's promise.
        unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(self.heap, pg_sys::ForkNumber::MAIN_FORKNUM)
        }
    }

    /// Reads `wanted` random blocks of the table (all of them if it has no
    /// more) in ascending order. Returns how many were read and how many exist.
    ///
    /// Each block is taken with the probability that just as many as are still
    /// wanted are taken from those that remain (Knuth, The Art of Computer
    /// Programming 3.4.2, algorithm S).
    ///
    /// # Safety
    /// As for [`Self::estimate_rows`].
    unsafe fn read_blocks(
        &self,
        wanted: u32,
        sample: &mut Sample,
        progress: &dyn Fn(u32, u32),
    ) -> (u32, u32) {
        // SAFETY: the caller's promise.
        let blocks = unsafe { self.block_count() };
        if wanted >= blocks {
            for first in (0..blocks).step_by(BLOCKS_TOGETHER as usize) {
                progress(first, blocks);
                check_for_interrupts!();
                let count = BLOCKS_TOGETHER.min(blocks - first);
                // SAFETY: the caller's promise.
                unsafe { self.read_range(first, count, sample) };
            }
            return (blocks, blocks);
        }
        let mut random = Random::new(SEED ^ u64::from(wanted));
        let mut taken = 0;
        for block in 0..blocks {
            if random.below(u64::from(blocks - block)) >= u64::from(wanted - taken) {
                continue;
            }
            progress(taken, wanted);
            taken += 1;
            check_for_interrupts!();
            // SAFETY: the caller's promise.
            unsafe { self.read_range(block, 1, sample) };
        }
        (taken, blocks)
    }

    /// Reads `count` blocks of the table from `first` on.
    ///
    /// # Safety
    /// As for [`Self::estimate_rows`].
    unsafe fn read_range(&self, first: u32, count: u32, sample: &mut Sample) {
        if count == 0 {
            return;
        }
        // SAFETY: the caller's promise; the callback gets the sample back.
        unsafe {
            pg_sys::table_index_build_range_scan(
                self.heap,
                self.index,
                self.info,
                false,
                true,
                false,
                first,
                count,
                Some(sample_row),
                std::ptr::from_mut(sample).cast(),
                std::ptr::null_mut(),
            );
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn sample_row(
    _index: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    values: *mut pg_sys::Datum,
    isnull: *mut bool,
    _is_alive: bool,
    state: *mut std::ffi::c_void,
) {
    // SAFETY: PostgreSQL passes the one column of a row and the sample that
    // `read_blocks` gave it.
    unsafe {
        if !*isnull {
            (*state.cast::<Sample>()).offer(*values, tid_of(tid));
        }
    }
}

impl Sample {
    /// Takes the row into the reservoir, or not (algorithm R of Vitter,
    /// "Random sampling with a reservoir", 1985).
    ///
    /// # Safety
    /// `datum` must be a value of the indexed type that is not NULL.
    unsafe fn offer(&mut self, datum: pg_sys::Datum, tid: Tid) {
        if self.capacity == 0 {
            self.seen += 1;
            return;
        }
        let place = if self.seen < self.capacity {
            self.seen
        } else {
            self.random.below(self.seen + 1)
        };
        if place >= self.capacity {
            self.seen += 1;
            return;
        }
        self.scratch.clear();
        // SAFETY: the caller's promise.
        if !unsafe { self.opclass.read(datum, self.dimensions, &mut self.scratch) } {
            return;
        }
        // The scratch space holds one vector, so this cannot fail.
        let _ = (self.opclass).make_comparable(self.scratch.len(), &mut self.scratch);
        self.seen += 1;
        let begin = place as usize * self.dimensions as usize;
        if begin == self.vectors.len() {
            self.reserve();
            self.vectors.extend_from_slice(&self.scratch);
            self.tids.push(Some(tid));
        } else {
            self.tids[place as usize] = Some(tid);
            let end = begin + self.scratch.len();
            self.vectors[begin..end].copy_from_slice(&self.scratch);
        }
    }

    /// Makes room for a row: twice as much as before, never more than the
    /// capacity of the reservoir.
    fn reserve(&mut self) {
        let dimensions = self.dimensions as usize;
        let len = self.vectors.len();
        if self.vectors.capacity() - len >= dimensions {
            return;
        }
        let most = self.capacity as usize * dimensions - len;
        let more = len.max(MIN_RESERVED_ROWS * dimensions).min(most);
        if self.vectors.try_reserve_exact(more).is_err() {
            raise_out_of_memory((len + more) * size_of::<f32>());
        }
    }
}
