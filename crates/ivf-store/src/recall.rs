//! The recall curve: how many of the nearest rows a search finds that reads so many
//! lists. It is measured with queries whose nearest rows are known, and a search
//! chooses its number of lists by it.

use crate::error::StoreError;
use crate::extent::{EXTENT_PAGE_BYTES, Extent, check_extent_page, read_extent, write_extent};
use crate::meta::{META_BLOCK, Meta};
use crate::page::{DATA_START, PageKind, get_u32, put_u32};
use crate::store::{PageChange, PageStore};

/// The curve has a recall for the nearest so many rows.
pub const RECALL_ROWS: [usize; 2] = [10, 100];

const POINT_SIZE: usize = 4 + 8 * RECALL_ROWS.len();
/// Every number of lists up to here is a point; beyond, each is larger than the one
/// before by an eighteenth.
const DENSE: u32 = 64;
const GROWTH: u32 = 18;

/// A share of the true nearest rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// The mean over the queries.
    pub mean: f32,
    /// Standard error of that mean.
    pub error: f32,
}

impl Recall {
    const ALL: Self = Self {
        mean: 1.0,
        error: 0.0,
    };
}

/// What was measured for one number of lists.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecallPoint {
    /// Lists read.
    pub nprobe: u32,
    /// Recall of each number of rows of [`RECALL_ROWS`].
    pub recall: [Recall; RECALL_ROWS.len()],
}

/// Points with rising numbers of lists; the last is that of all lists.
#[derive(Debug, Clone, PartialEq)]
pub struct RecallCurve {
    points: Vec<RecallPoint>,
}

impl RecallCurve {
    /// What is known without measuring: all lists find everything.
    #[must_use]
    pub fn unmeasured(lists: u32) -> Self {
        Self {
            points: vec![RecallPoint {
                nprobe: lists,
                recall: [Recall::ALL; RECALL_ROWS.len()],
            }],
        }
    }

    /// The curve of an index of `lists` lists. `ranks` holds for each query the ranks,
    /// from 1, of the lists that hold its true nearest rows, nearest first, when lists
    /// are ordered by nearness to the query.
    #[must_use]
    pub fn measured(lists: u32, ranks: &[Vec<u32>]) -> Self {
        let ranks: Vec<&[u32]> = ranks
            .iter()
            .map(Vec::as_slice)
            .filter(|ranks| !ranks.is_empty())
            .collect();
        if ranks.is_empty() {
            return Self::unmeasured(lists);
        }
        let mut points: Vec<RecallPoint> = Vec::new();
        for nprobe in numbers(lists) {
            let recall = RECALL_ROWS.map(|rows| recall_of(&ranks, rows, nprobe));
            points.push(RecallPoint { nprobe, recall });
            if recall.iter().all(|recall| recall.mean >= 1.0) {
                break;
            }
        }
        if points.last().is_none_or(|last| last.nprobe < lists) {
            points.extend(Self::unmeasured(lists).points);
        }
        Self { points }
    }

    /// The points.
    #[must_use]
    pub fn points(&self) -> &[RecallPoint] {
        &self.points
    }

    /// The least numbers of lists whose recall of each of [`RECALL_ROWS`] reaches
    /// `target`, by a standard error more than the mean: what was measured with few
    /// queries must hold for others.
    #[must_use]
    pub fn nprobe(&self, target: f64) -> [u32; RECALL_ROWS.len()] {
        let mut least = 1;
        std::array::from_fn(|place| {
            let reaches = |point: &&RecallPoint| {
                let recall = point.recall[place];
                f64::from(recall.mean - recall.error) >= target
            };
            let found = self.points.iter().find(reaches).or(self.points.last());
            // More rows never take fewer lists, whatever chance says.
            least = found.map_or(1, |point| point.nprobe).max(least);
            least
        })
    }

    /// The recall of the nearest [`RECALL_ROWS`]`[0]` rows to expect of a search that
    /// reads `nprobe` lists.
    #[must_use]
    pub fn recall(&self, nprobe: u32) -> f32 {
        let below = self
            .points
            .iter()
            .rev()
            .find(|point| point.nprobe <= nprobe);
        below.map_or(0.0, |point| point.recall[0].mean)
    }

    /// Appends the page of the curve to an index that is being built.
    ///
    /// # Errors
    /// [`StoreError`] from the store.
    pub fn append<S: PageStore>(&self, store: &S) -> Result<Extent, StoreError> {
        write_extent(store, PageKind::Recall, &self.to_bytes())
    }

    /// Reads the curve of an index; that of a single list is known.
    ///
    /// # Errors
    /// [`StoreError`] if the page is damaged.
    pub fn read<S: PageStore>(store: &S, meta: &Meta) -> Result<Self, StoreError> {
        if meta.recall == Extent::NONE {
            return Ok(Self::unmeasured(meta.lists));
        }
        let mut bytes = vec![0; EXTENT_PAGE_BYTES];
        read_extent(store, PageKind::Recall, &meta.recall, &mut bytes)?;
        let points: Vec<RecallPoint> = bytes
            .chunks_exact(POINT_SIZE)
            .take_while(|bytes| get_u32(bytes, 0) > 0)
            .map(|bytes| RecallPoint {
                nprobe: get_u32(bytes, 0),
                recall: std::array::from_fn(|place| Recall {
                    mean: f32::from_bits(get_u32(bytes, 4 + 8 * place)),
                    error: f32::from_bits(get_u32(bytes, 8 + 8 * place)),
                }),
            })
            .collect();
        let rises = points.windows(2).all(|two| two[0].nprobe < two[1].nprobe);
        let ends = points.last().is_some_and(|last| last.nprobe == meta.lists);
        let share = 0.0..=1.0;
        let finite = (points.iter().flat_map(|point| point.recall))
            .all(|recall| share.contains(&recall.mean) && share.contains(&recall.error));
        if !rises || !ends || !finite {
            let reason = "the recall curve is damaged";
            return Err(StoreError::corrupted(meta.recall.first, reason));
        }
        Ok(Self { points })
    }

    /// Replaces the curve of an index, and gives the meta page `stamp`, so that copies
    /// of the old curve are recognised.
    ///
    /// # Errors
    /// [`StoreError`] if a page is damaged.
    pub fn replace<S: PageStore>(
        &self,
        store: &S,
        meta: &Meta,
        stamp: u64,
    ) -> Result<(), StoreError> {
        let new = Meta {
            stamp,
            ..meta.clone()
        };
        let mut change = store.change();
        let first = change.lock(META_BLOCK)?;
        let block = meta.recall.first;
        let second = change.lock(block)?;
        check_extent_page(
            change.page(second),
            block,
            PageKind::Recall,
            0,
            EXTENT_PAGE_BYTES,
        )?;
        *change.page_mut(first) = *new.to_page();
        let data = DATA_START..DATA_START + EXTENT_PAGE_BYTES;
        change.page_mut(second)[data].copy_from_slice(&self.to_bytes());
        change.commit();
        Ok(())
    }

    /// A page's data, whatever the number of points: a curve is replaced while others
    /// read the page.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; EXTENT_PAGE_BYTES];
        for (bytes, point) in bytes.chunks_exact_mut(POINT_SIZE).zip(&self.points) {
            put_u32(bytes, 0, point.nprobe);
            for (place, recall) in point.recall.iter().enumerate() {
                put_u32(bytes, 4 + 8 * place, recall.mean.to_bits());
                put_u32(bytes, 8 + 8 * place, recall.error.to_bits());
            }
        }
        bytes
    }
}

/// The recall of the nearest `rows` rows for searches that read `nprobe` lists.
fn recall_of(ranks: &[&[u32]], rows: usize, nprobe: u32) -> Recall {
    let count = ranks.len() as f64;
    let (mut sum, mut squares, mut seen) = (0.0, 0.0, 0);
    for ranks in ranks {
        let nearest = &ranks[..rows.min(ranks.len())];
        let found = nearest.iter().filter(|rank| **rank <= nprobe).count();
        let recall = found as f64 / nearest.len() as f64;
        sum += recall;
        squares += recall * recall;
        seen += nearest.len();
    }
    let mean = sum / count;
    let variance = (squares / count - mean * mean).max(0.0);
    let error = (variance / (count - 1.0).max(1.0)).sqrt();
    // What few neighbours say is not certain, even if they agree.
    let least_error = 1.0 / (seen as f64 + 1.0);
    Recall {
        mean: mean as f32,
        error: error.max(least_error) as f32,
    }
}

/// The numbers of lists that are measured, the last of them `lists`.
fn numbers(lists: u32) -> impl Iterator<Item = u32> {
    let next = move |nprobe: &u32| match *nprobe {
        last if last >= lists => None,
        few if few < DENSE => Some(few + 1),
        many => Some(many.saturating_add(many.div_ceil(GROWTH)).min(lists)),
    };
    std::iter::successors(Some(1), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_are_the_last_point_and_points_fit_into_a_page() {
        for lists in [1, 2, 63, 64, 65, 1000, 65_536, u32::MAX] {
            let numbers: Vec<u32> = numbers(lists).collect();
            assert_eq!(numbers.last(), Some(&lists));
            assert!(numbers.windows(2).all(|two| two[0] < two[1]));
            assert!(
                numbers.len() < EXTENT_PAGE_BYTES / POINT_SIZE,
                "{}",
                numbers.len()
            );
        }
    }

    #[test]
    fn recall_is_the_share_of_rows_in_the_lists_that_are_read() {
        let mut far = vec![1; 10];
        far.extend([4; 10]);
        let curve = RecallCurve::measured(10, &[vec![1, 1, 1, 2], vec![1, 1, 3, 3], far, vec![]]);
        let of_ten: Vec<f32> = (curve.points().iter())
            .map(|point| (point.recall[0].mean * 3.0 * 4.0).round() / 4.0)
            .collect();
        // Of the first four, three, two and ten of ten; the others are only known to exist.
        assert_eq!(of_ten, [2.25, 2.5, 3.0, 3.0, 3.0]);
        let of_hundred: Vec<f32> = (curve.points().iter())
            .map(|point| (point.recall[1].mean * 3.0 * 4.0).round() / 4.0)
            .collect();
        assert_eq!(of_hundred, [1.75, 2.0, 2.5, 3.0, 3.0]);
        assert_eq!(curve.points()[4].nprobe, 10);
        // One row of eighteen more for what is certain by these few.
        assert!((curve.points()[2].recall[0].error - 1.0 / 19.0).abs() < 1e-6);
        assert!((curve.recall(2) * 3.0 - 2.5).abs() < 1e-6);
        assert_eq!(curve.recall(7), 1.0);
        assert_eq!(curve.nprobe(0.3), [1, 1]);
        assert_eq!(curve.nprobe(0.8), [3, 4]);
        assert_eq!(curve.nprobe(1.0), [10, 10]);
    }

    #[test]
    fn the_error_is_that_of_the_mean_over_queries() {
        let curve = RecallCurve::measured(10, &[vec![1, 1, 1, 2], vec![1, 1, 3, 3]]);
        // Of 0.75 and 0.5: a deviation of 0.125 over the root of one less than two.
        assert!((curve.points()[0].recall[0].error - 0.125).abs() < 1e-6);
    }

    #[test]
    fn without_queries_all_lists_are_read() {
        for curve in [RecallCurve::unmeasured(7), RecallCurve::measured(7, &[])] {
            assert_eq!(curve.nprobe(0.1), [7, 7]);
            assert_eq!(curve.recall(6), 0.0);
        }
    }
}
