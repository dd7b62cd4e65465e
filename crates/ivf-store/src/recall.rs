//! The recall curve: how many of the nearest rows a search finds that reads so many
//! lists. It is measured with queries whose nearest rows are known, and a search
//! chooses its number of lists by it.
//!
//! Not every query takes as many lists: where the centroids near it are about equally
//! far, its nearest rows lie in many lists, and where one is much nearer, in few. So the
//! curve has a *reach* beside each number of lists: reading the lists whose [`spread`] is
//! no larger finds as many rows, with fewer lists on average.

use crate::error::StoreError;
use crate::extent::{EXTENT_PAGE_BYTES, Extent, check_extent_page, read_extent, write_extent};
use crate::meta::{META_BLOCK, Meta};
use crate::page::{DATA_START, PageKind, get_u32, put_u32};
use crate::store::{PageChange, PageStore};

/// The curve has a recall for the nearest so many rows.
pub const RECALL_ROWS: [usize; 2] = [10, 100];

const POINT_SIZE: usize = 12 + 8 * RECALL_ROWS.len();
/// Every number of lists up to here is a point; beyond, each is larger than the one
/// before by an eleventh.
const DENSE: u32 = 64;
const GROWTH: u32 = 11;

/// How far down a query's order of lists one of them is: by its rank, from 1, and by its
/// gap, how much farther its centroid is than the nearest. Both together tell better than
/// either whether rows near the query lie in a list; of the products of powers that were
/// compared on sentence embeddings this one needs the fewest lists.
#[must_use]
pub fn spread(rank: u32, gap: f32) -> f32 {
    gap * (rank as f32).sqrt()
}

/// How the lists lie around a query, and in which of them its nearest rows are.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryLists {
    /// Rank, from 1, and gap of the lists of its true nearest rows, nearest first.
    pub nearest: Vec<(u32, f32)>,
    /// The gap of the list at each rank of [`RecallCurve::ranks`].
    pub gaps: Vec<f32>,
}

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
    /// Reading the lists whose [`spread`] is no larger finds as many of the nearest
    /// [`RECALL_ROWS`]`[0]` rows. Infinite if that is not known.
    pub reach: f32,
    /// How many lists that is on average, [`Self::nprobe`] if it is not known.
    pub lists: f32,
}

/// How a search reaches a recall.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// The same number of lists for each query, for each number of rows of
    /// [`RECALL_ROWS`].
    pub nprobe: [u32; RECALL_ROWS.len()],
    /// [`RecallPoint::reach`] of the first of them.
    pub reach: f32,
    /// [`RecallPoint::lists`] of the first of them.
    pub lists: f32,
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
                reach: f32::INFINITY,
                lists: lists as f32,
            }],
        }
    }

    /// The curve of an index of `lists` lists, by queries whose nearest rows are known.
    #[must_use]
    pub fn measured(lists: u32, queries: &[QueryLists]) -> Self {
        let queries: Vec<&QueryLists> = queries
            .iter()
            .filter(|query| !query.nearest.is_empty())
            .collect();
        if queries.is_empty() {
            return Self::unmeasured(lists);
        }
        let spreads = Spreads::new(lists, &queries);
        let mut points: Vec<RecallPoint> = Vec::new();
        for nprobe in Self::ranks(lists) {
            let recall = RECALL_ROWS.map(|rows| recall_of(&queries, rows, nprobe));
            let (reach, mean) = spreads.reach(f64::from(recall[0].mean), nprobe);
            points.push(RecallPoint {
                nprobe,
                recall,
                reach,
                lists: mean,
            });
            if recall.iter().all(|recall| recall.mean >= 1.0) {
                break;
            }
        }
        if points.last().is_none_or(|last| last.nprobe < lists) {
            points.extend(Self::unmeasured(lists).points);
        }
        Self { points }
    }

    /// The numbers of lists that are measured, the last of them `lists`.
    pub fn ranks(lists: u32) -> impl Iterator<Item = u32> {
        let next = move |nprobe: &u32| match *nprobe {
            last if last >= lists => None,
            few if few < DENSE => Some(few + 1),
            many => Some(many.saturating_add(many.div_ceil(GROWTH)).min(lists)),
        };
        std::iter::successors(Some(1), next)
    }

    /// The points.
    #[must_use]
    pub fn points(&self) -> &[RecallPoint] {
        &self.points
    }

    /// The least effort whose recall of each of [`RECALL_ROWS`] reaches `target`, by a
    /// standard error more than the mean: what was measured with few queries must hold
    /// for others.
    #[must_use]
    pub fn effort(&self, target: f64) -> Effort {
        let found = |place: usize| {
            let reaches = |point: &&RecallPoint| {
                let recall = point.recall[place];
                f64::from(recall.mean - recall.error) >= target
            };
            self.points.iter().find(reaches).or(self.points.last())
        };
        let mut least = 1;
        let nprobe = std::array::from_fn(|place| {
            // More rows never take fewer lists, whatever chance says.
            least = found(place).map_or(1, |point| point.nprobe).max(least);
            least
        });
        let first = found(0);
        Effort {
            nprobe,
            reach: first.map_or(f32::INFINITY, |point| point.reach),
            lists: first.map_or(1.0, |point| point.lists),
        }
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
                reach: f32::from_bits(get_u32(bytes, POINT_SIZE - 8)),
                lists: f32::from_bits(get_u32(bytes, POINT_SIZE - 4)),
            })
            .collect();
        let rises = points.windows(2).all(|two| two[0].nprobe < two[1].nprobe);
        let ends = points.last().is_some_and(|last| last.nprobe == meta.lists);
        let share = 0.0..=1.0;
        let finite = (points.iter().flat_map(|point| point.recall))
            .all(|recall| share.contains(&recall.mean) && share.contains(&recall.error));
        let known = points
            .iter()
            .all(|point| point.reach >= 0.0 && (1.0..=meta.lists as f32).contains(&point.lists));
        if !rises || !ends || !finite || !known {
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
            put_u32(bytes, POINT_SIZE - 8, point.reach.to_bits());
            put_u32(bytes, POINT_SIZE - 4, point.lists.to_bits());
        }
        bytes
    }
}

/// The recall of the nearest `rows` rows for searches that read `nprobe` lists.
fn recall_of(queries: &[&QueryLists], rows: usize, nprobe: u32) -> Recall {
    let count = queries.len() as f64;
    let (mut sum, mut squares, mut seen) = (0.0, 0.0, 0);
    for query in queries {
        let nearest = &query.nearest[..rows.min(query.nearest.len())];
        let found = nearest.iter().filter(|(rank, _)| *rank <= nprobe).count();
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

/// The spreads of lists around queries.
struct Spreads {
    ranks: Vec<u32>,
    /// Spreads at those ranks, for each query.
    around: Vec<Vec<f32>>,
    /// Spreads of the lists of the nearest rows of all queries, ascending, each with the
    /// part that it has in the recall.
    nearest: Vec<(f32, f64)>,
}

impl Spreads {
    fn new(lists: u32, queries: &[&QueryLists]) -> Self {
        let ranks: Vec<u32> = RecallCurve::ranks(lists).collect();
        let is_known = |query: &&&QueryLists| query.gaps.iter().all(|gap| gap.is_finite());
        let known: Vec<_> = queries.iter().filter(is_known).collect();
        let around = known.iter().map(|query| {
            let spreads = ranks.iter().zip(&query.gaps);
            spreads.map(|(rank, gap)| spread(*rank, *gap)).collect()
        });
        let around = around.collect();
        let mut nearest: Vec<(f32, f64)> = Vec::new();
        for query in &known {
            let rows = &query.nearest[..RECALL_ROWS[0].min(query.nearest.len())];
            let part = 1.0 / (rows.len() * known.len()) as f64;
            nearest.extend(rows.iter().map(|(rank, gap)| (spread(*rank, *gap), part)));
        }
        nearest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        Self {
            ranks,
            around,
            nearest,
        }
    }

    /// The reach of a recall, and how many lists it is on average; what is said of
    /// `nprobe` lists if that is not known, or not less.
    fn reach(&self, recall: f64, nprobe: u32) -> (f32, f32) {
        let mut found = 0.0;
        let enough = self.nearest.iter().find(|(_, part)| {
            found += part;
            // As many parts as there are may fall short of their sum by rounding.
            found >= recall - 1e-9
        });
        let Some((reach, _)) = enough else {
            return (f32::INFINITY, nprobe as f32);
        };
        let lists = |spreads: &Vec<f32>| {
            let within = spreads.partition_point(|spread| spread <= reach);
            f64::from(self.ranks[within.max(1) - 1])
        };
        let sum: f64 = self.around.iter().map(lists).sum();
        let mean = (sum / self.around.len() as f64) as f32;
        if mean < nprobe as f32 {
            (*reach, mean)
        } else {
            (f32::INFINITY, nprobe as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_are_the_last_point_and_points_fit_into_a_page() {
        for lists in [1, 2, 63, 64, 65, 1000, 65_536, u32::MAX] {
            let numbers: Vec<u32> = RecallCurve::ranks(lists).collect();
            assert_eq!(numbers.last(), Some(&lists));
            assert!(numbers.windows(2).all(|two| two[0] < two[1]));
            assert!(
                numbers.len() < EXTENT_PAGE_BYTES / POINT_SIZE,
                "{}",
                numbers.len()
            );
        }
    }

    /// A query around which centroids are ever farther by `step`.
    fn query(lists: u32, step: f32, ranks: &[u32]) -> QueryLists {
        let gap = |rank: u32| (rank - 1) as f32 * step;
        QueryLists {
            nearest: ranks.iter().map(|&rank| (rank, gap(rank))).collect(),
            gaps: RecallCurve::ranks(lists).map(gap).collect(),
        }
    }

    #[test]
    fn recall_is_the_share_of_rows_in_the_lists_that_are_read() {
        let mut far = vec![1; 10];
        far.extend([4; 10]);
        let ranks: [&[u32]; 4] = [&[1, 1, 1, 2], &[1, 1, 3, 3], &far, &[]];
        let curve = RecallCurve::measured(10, &ranks.map(|ranks| query(10, 0.1, ranks)));
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
        assert_eq!(curve.effort(0.3).nprobe, [1, 1]);
        assert_eq!(curve.effort(0.8).nprobe, [3, 4]);
        assert_eq!(curve.effort(1.0).nprobe, [10, 10]);
    }

    #[test]
    fn a_query_with_a_near_centroid_takes_fewer_lists() {
        let (crowded, lonely) = (query(50, 0.01, &[1, 8]), query(50, 1.0, &[1, 1]));
        let curve = RecallCurve::measured(50, &[crowded, lonely]);
        let eight = curve.points()[7];
        assert_eq!((eight.nprobe, eight.recall[0].mean), (8, 1.0));
        assert_eq!(eight.reach, spread(8, 0.07));
        // Eight for the one, one for the other.
        assert_eq!(eight.lists, 4.5);
        // Where the reach would read no fewer lists, all queries read as many.
        let two = curve.points()[1];
        assert_eq!((two.recall[0].mean, two.reach, two.lists), (0.75, 0.0, 1.0));
    }

    #[test]
    fn queries_whose_distances_are_no_numbers_have_no_reach() {
        let curve = RecallCurve::measured(9, &[query(9, f32::INFINITY, &[1, 2])]);
        assert!(
            curve
                .points()
                .iter()
                .all(|point| point.reach == f32::INFINITY && point.lists == point.nprobe as f32)
        );
        assert_eq!(curve.effort(0.4).nprobe, [2, 2]);
    }

    #[test]
    fn the_error_is_that_of_the_mean_over_queries() {
        let queries = [query(10, 0.1, &[1, 1, 1, 2]), query(10, 0.1, &[1, 1, 3, 3])];
        let curve = RecallCurve::measured(10, &queries);
        // Of 0.75 and 0.5: a deviation of 0.125 over the root of one less than two.
        assert!((curve.points()[0].recall[0].error - 0.125).abs() < 1e-6);
    }

    #[test]
    fn without_queries_all_lists_are_read() {
        for curve in [RecallCurve::unmeasured(7), RecallCurve::measured(7, &[])] {
            let effort = curve.effort(0.1);
            assert_eq!((effort.nprobe, effort.reach), ([7, 7], f32::INFINITY));
            assert_eq!(curve.recall(6), 0.0);
        }
    }
}
