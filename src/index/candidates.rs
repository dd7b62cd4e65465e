//! Rows that were found and not yet returned, at three stages: with a bound by their
//! code, with a closer one by their refine code, and with their exact distance.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, TryReserveError};

use ivf_store::{Block, Tid};

/// A row that is no nearer than `key`.
#[derive(Clone, Copy)]
pub(super) struct Keyed {
    pub key: f32,
    pub tid: Tid,
}

impl Ord for Keyed {
    /// The greatest is the nearest, which a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.key.total_cmp(&self.key)).then_with(|| other.tid.cmp(&self.tid))
    }
}

impl PartialOrd for Keyed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Keyed {}

/// Where the row of a candidate is.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPlace {
    pub block: Block,
    pub index: usize,
    /// The list, by its place among those that the scan has ranked.
    pub list: u32,
}

/// What is done for candidates before it is their turn.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ahead {
    /// Their pages come into buffers.
    Read,
    /// What is read of their pages comes into the processor's cache.
    Touch,
}

/// About so many of the nearest candidates of a queue are sorted at once.
const SORTED: usize = 128;
/// So many keys are looked at to tell how near those are.
const SAMPLED: usize = 512;
/// Keys that are compared at once.
const CHUNK: usize = 32;

/// Keys of which only the nearest are ever looked at: those are sorted, and the others
/// not before they are needed. What a key belongs to is known by its place in the order
/// of their coming.
#[derive(Default)]
struct LazyQueue {
    /// All keys that came.
    keys: Vec<f32>,
    /// Those before here were looked at: the ones up to `limit` were taken into `near`.
    seen: usize,
    /// `None` if none was taken yet.
    limit: Option<f32>,
    /// Keys and places of what was taken, the nearest of all at the end if it is sorted.
    near: Vec<(f32, u32)>,
    is_sorted: bool,
    /// So many of the nearest were announced, by [`Ahead`].
    announced: [usize; 2],
}

impl LazyQueue {
    /// As it was made, but with its memory.
    fn clear(&mut self) {
        self.keys.clear();
        self.near.clear();
        *self = Self {
            keys: std::mem::take(&mut self.keys),
            near: std::mem::take(&mut self.near),
            ..Self::default()
        };
    }

    /// Bytes of its memory.
    fn room(&self) -> usize {
        self.keys.capacity() * size_of::<f32>() + self.near.capacity() * size_of::<(f32, u32)>()
    }

    fn reserve(&mut self, count: usize) -> Result<(), TryReserveError> {
        if u32::try_from(self.keys.len() + count).is_err() {
            // More places than a number of a place can say.
            return self.keys.try_reserve(usize::MAX);
        }
        self.keys.try_reserve(count)?;
        // All may come to be near.
        let missing = (self.keys.len() + count).saturating_sub(self.near.len());
        self.near.try_reserve(missing)
    }

    fn push(&mut self, key: f32) {
        self.keys.push(key);
    }

    /// Takes those into `near` that came after the last time and belong there.
    fn take_new(&mut self) {
        let from = std::mem::replace(&mut self.seen, self.keys.len());
        match self.limit {
            None => {}
            Some(f32::INFINITY) => self.take(from, |_| true),
            Some(limit) => self.take(from, |key| key <= limit),
        }
    }

    /// Takes the nearest of those that were not taken; what is no number comes last.
    fn take_more(&mut self) {
        let next = self.next_limit();
        match (self.limit.replace(next), next) {
            (None, f32::INFINITY) => self.take(0, |_| true),
            (None, next) => self.take(0, |key| key <= next),
            (Some(limit), f32::INFINITY) => self.take(0, |key| key > limit || key.is_nan()),
            (Some(limit), next) => self.take(0, |key| key > limit && key <= next),
        }
    }

    /// Takes those that are `wanted` of the keys from the place `from` on. Few are, so
    /// that most chunks are passed by after a comparison of all their keys at once.
    fn take(&mut self, from: usize, wanted: impl Fn(f32) -> bool) {
        let before = self.near.len();
        let mut place = from as u32;
        for chunk in self.keys[from..].chunks(CHUNK) {
            let count: u32 = chunk.iter().map(|key| u32::from(wanted(*key))).sum();
            if count > 0 {
                let found = (place..).zip(chunk).filter(|(_, key)| wanted(**key));
                self.near.extend(found.map(|(place, key)| (*key, place)));
            }
            place += chunk.len() as u32;
        }
        self.is_sorted &= self.near.len() == before;
    }

    /// How far to go for about [`SORTED`] more, by keys at even distances.
    fn next_limit(&self) -> f32 {
        let step = self.keys.len().div_ceil(SAMPLED).max(1);
        let is_left = |key: &f32| self.limit.is_none_or(|limit| *key > limit);
        let mut sample: Vec<f32> = (self.keys.iter().step_by(step).copied())
            .filter(is_left)
            .collect();
        let wanted = SORTED / step;
        if wanted >= sample.len() {
            return f32::INFINITY;
        }
        *sample.select_nth_unstable_by(wanted, f32::total_cmp).1
    }

    fn prepare(&mut self) {
        if self.seen < self.keys.len() {
            self.take_new();
        }
        while self.near.is_empty() && self.limit != Some(f32::INFINITY) && !self.keys.is_empty() {
            self.take_more();
        }
        if !self.is_sorted {
            self.near
                .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
            self.is_sorted = true;
            self.announced = [0; 2];
        }
    }

    /// The key of the nearest.
    fn peek(&mut self) -> Option<f32> {
        self.prepare();
        self.near.last().map(|(key, _)| *key)
    }

    /// Key and place of the nearest, which is taken out; [`Self::peek`] comes before.
    fn pop(&mut self) -> Option<(f32, usize)> {
        debug_assert!(self.is_sorted);
        self.announced = self.announced.map(|count| count.saturating_sub(1));
        self.near.pop().map(|(key, place)| (key, place as usize))
    }

    /// The places of the next `count`, one at a time and each once.
    fn announce(&mut self, ahead: Ahead, count: usize) -> Option<usize> {
        let announced = &mut self.announced[ahead as usize];
        let place = self.near.len().checked_sub(1 + *announced)?;
        if *announced >= count {
            return None;
        }
        *announced += 1;
        Some(self.near[place].1 as usize)
    }
}

/// Rows of one stage: those that came many at once, and single ones.
#[derive(Default)]
struct Rows {
    many: LazyQueue,
    /// Those that `many` has the keys of.
    tids: Vec<Tid>,
    singles: BinaryHeap<Keyed>,
}

impl Rows {
    fn clear(&mut self) {
        self.many.clear();
        self.tids.clear();
        self.singles.clear();
    }

    /// Bytes of its memory.
    fn room(&self) -> usize {
        let tids = self.tids.capacity() * size_of::<Tid>();
        self.many.room() + tids + self.singles.capacity() * size_of::<Keyed>()
    }

    fn reserve(&mut self, count: usize) -> Result<(), TryReserveError> {
        self.many.reserve(count)?;
        self.tids.try_reserve(count)
    }

    fn push(&mut self, row: Keyed) {
        self.many.push(row.key);
        self.tids.push(row.tid);
    }

    fn peek(&mut self) -> Option<f32> {
        let (many, single) = (self.many.peek(), self.singles.peek());
        match (many, single) {
            (Some(many), Some(single)) => Some(lesser(many, single.key)),
            (many, single) => many.or(single.map(|row| row.key)),
        }
    }

    fn pop(&mut self) -> Option<Keyed> {
        let many = self.many.peek();
        if no_later(many, self.singles.peek().map(|row| row.key)) {
            let (key, place) = self.many.pop()?;
            let tid = self.tids[place];
            return Some(Keyed { key, tid });
        }
        self.singles.pop()
    }
}

fn lesser(a: f32, b: f32) -> f32 {
    if a.total_cmp(&b).is_le() { a } else { b }
}

/// Whether there is a key, and it is not greater than another, if there is one.
fn no_later(key: Option<f32>, other: Option<f32>) -> bool {
    key.is_some_and(|key| other.is_none_or(|other| key.total_cmp(&other).is_le()))
}

/// Entries of list pages, with bounds by their codes.
#[derive(Default)]
struct Coded {
    queue: LazyQueue,
    pages: Vec<CodedPage>,
    /// Row pages of all those pages.
    row_pages: Vec<Block>,
}

/// The entries of a list page.
struct CodedPage {
    /// Place of the first among all entries.
    first: usize,
    /// Number of the first of its row pages.
    row_page: usize,
    list: u32,
}

impl Coded {
    /// Where the row of the entry at `place` is.
    fn row(&self, place: usize, row_capacity: usize) -> RowPlace {
        let page = self.pages.partition_point(|page| page.first <= place) - 1;
        let page = &self.pages[page];
        let entry = place - page.first;
        RowPlace {
            block: self.row_pages[page.row_page + entry / row_capacity],
            index: entry % row_capacity,
            list: page.list,
        }
    }
}

/// So many bytes of memory are kept for the next scan.
const MOST_SPARE: usize = 4 << 20;

thread_local! {
    /// Memory of a scan that has ended: to let it grow again, and get its pages from the system
    /// again, would take a good part of a search.
    static SPARE: Cell<Option<Candidates>> = const { Cell::new(None) };
}

/// Rows by stage.
#[derive(Default)]
pub(super) struct Candidates {
    /// Entries of a row page.
    row_capacity: usize,
    coded: Coded,
    refined: Rows,
    exact: Rows,
}

/// The nearest candidate, taken out.
pub(super) enum Nearest {
    /// It needs its row page.
    Coded(RowPlace),
    /// It needs its vector.
    Refined(Tid),
    /// There is none nearer.
    Exact(Keyed),
}

impl Candidates {
    /// None yet, of an index with so many entries in a row page; with the memory of an
    /// earlier scan, if there is some.
    pub fn new(row_capacity: usize) -> Self {
        let spare = SPARE.take().unwrap_or_default();
        Self {
            row_capacity,
            ..spare
        }
    }

    /// Leaves the memory for the next scan.
    pub fn give_back(mut self) {
        if self.room() <= MOST_SPARE {
            self.clear();
            SPARE.set(Some(self));
        }
    }

    /// None, with the memory of those that there were.
    fn clear(&mut self) {
        self.coded.queue.clear();
        self.coded.pages.clear();
        self.coded.row_pages.clear();
        self.refined.clear();
        self.exact.clear();
    }

    /// Bytes of its memory.
    fn room(&self) -> usize {
        let pages = self.coded.pages.capacity() * size_of::<CodedPage>();
        let row_pages = self.coded.row_pages.capacity() * size_of::<Block>();
        let rows = self.refined.room() + self.exact.room();
        self.coded.queue.room() + pages + row_pages + rows
    }

    /// Makes room for the entries of a list page with so many row pages.
    pub fn reserve(&mut self, count: usize, row_pages: usize) -> Result<(), TryReserveError> {
        if self.row_capacity > 0 {
            self.coded.queue.reserve(count)?;
            self.coded.pages.try_reserve(1)?;
            return self.coded.row_pages.try_reserve(row_pages);
        }
        self.refined.reserve(count)?;
        self.exact.reserve(count)
    }

    /// Bytes of the candidates that lists had.
    pub fn bytes(&self) -> usize {
        let keys = self.coded.queue.keys.len() * size_of::<f32>();
        keys + (self.refined.tids.len() + self.exact.tids.len()) * size_of::<Keyed>()
    }

    /// Takes a list page of the list at place `list`: bounds of all its entries, which are
    /// numbers, and its row pages.
    pub fn push_coded(&mut self, list: u32, keys: &[f32], row_pages: impl Iterator<Item = Block>) {
        let coded = &mut self.coded;
        coded.pages.push(CodedPage {
            first: coded.queue.keys.len(),
            row_page: coded.row_pages.len(),
            list,
        });
        coded.queue.keys.extend_from_slice(keys);
        coded.row_pages.extend(row_pages);
    }

    /// Takes one of many of a list.
    pub fn push_refined(&mut self, row: Keyed) {
        self.refined.push(row);
    }

    /// Takes one of many of a list.
    pub fn push_exact(&mut self, row: Keyed) {
        self.exact.push(row);
    }

    /// Takes one whose refine code was read.
    pub fn add_refined(&mut self, row: Keyed) {
        self.refined.singles.push(row);
    }

    /// Takes one whose vector was read.
    pub fn add_exact(&mut self, row: Keyed) {
        self.exact.singles.push(row);
    }

    /// Calls `announce` with the next `count` candidates with bounds by their codes, with
    /// each once for each purpose.
    pub fn look_ahead(&mut self, ahead: Ahead, count: usize, mut announce: impl FnMut(RowPlace)) {
        while let Some(place) = self.coded.queue.announce(ahead, count) {
            announce(self.coded.row(place, self.row_capacity));
        }
    }

    /// Takes the candidate that may be the nearest; of equally near ones that which is
    /// known best.
    pub fn pop(&mut self) -> Option<Nearest> {
        let (coded, refined) = (self.coded.queue.peek(), self.refined.peek());
        let exact = self.exact.peek();
        if no_later(exact, refined) && no_later(exact, coded) {
            return self.exact.pop().map(Nearest::Exact);
        }
        if no_later(refined, coded) {
            return self.refined.pop().map(|row| Nearest::Refined(row.tid));
        }
        let (_, place) = self.coded.queue.pop()?;
        Some(Nearest::Coded(self.coded.row(place, self.row_capacity)))
    }
}
