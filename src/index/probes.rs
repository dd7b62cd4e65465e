//! How many lists a scan reads: what a setting says, or as few as the recall curve
//! allows for the recall that is wanted.

use faiss_ivf::FaissError;
use ivf_store::{Meta, RECALL_ROWS, RecallCurve};
use pgrx::pg_sys;

use super::list_reading::Comparison;
use super::options::{self, IterativeScan};
use super::ranking::Ranking;
use super::trained::Trained;

/// A scan has read at least so many times as many entries as it has returned rows, as
/// long as there are further lists: of what lies in lists, only the nearer part is known
/// to be nearer than what lies in others.
const ENTRIES_PER_ROW: u64 = 8;

/// Where nobody sets their number, a search reads at least so many lists. The curve is
/// measured with rows, which lie within the lists; what people search for may lie between
/// them, all of its nearest rows in a list whose centroid is not the nearest. Where lists
/// are so tight that one is enough for rows, searches by two words found 0.93 of ten rows
/// in one list, and nothing for one in twenty, but 0.996 in two.
const LEAST_LISTS: u32 = 3;

/// No bound is held to be wrong in fewer cases, whatever recall is wanted: four standard
/// deviations.
const LEAST_TAIL: f64 = 3.17e-5;

/// Numbers of lists.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probes {
    /// Lists that a scan reads before it returns its first row.
    pub first: u32,
    /// How many that is on average, where it depends on the query.
    pub mean: f64,
    /// A query reads the lists first whose spread is at most this; `None` if that does
    /// not depend on the query.
    reach: Option<f32>,
    /// Lists that it reads at most.
    pub most: u32,
    /// The number of lists that so many times as many rows take is so many times as
    /// large to the power of this.
    growth: f64,
}

impl Probes {
    /// For a scan of `index` by the settings of the session.
    ///
    /// # Safety
    /// `index` must be the open index that `curve` and `meta` are of.
    pub unsafe fn choose(index: pg_sys::Relation, curve: &RecallCurve, meta: &Meta) -> Self {
        let (first, mean, reach, growth) = match options::nprobe() {
            // A number that somebody sets holds for any query and any number of rows.
            Some(nprobe) => (nprobe, f64::from(nprobe), None, 0.0),
            None => {
                // SAFETY: the caller's promise.
                let effort = curve.effort(unsafe { options::target_recall(index) });
                let [few, many] = effort.nprobe;
                let [few_rows, many_rows] = RECALL_ROWS.map(|rows| rows as f64);
                let growth = (f64::from(many) / f64::from(few)).ln() / (many_rows / few_rows).ln();
                let reach = Some(effort.reach).filter(|reach| reach.is_finite());
                let mean = f64::from(effort.lists).max(LEAST_LISTS.into());
                (few.max(LEAST_LISTS), mean, reach, growth)
            }
        };
        let first = first.clamp(1, meta.lists);
        Self {
            first,
            mean: mean.min(first.into()),
            reach,
            most: most(first, meta.lists),
            growth,
        }
    }

    /// For a query with such lists.
    ///
    /// # Errors
    /// As for [`Ranking::sort`].
    pub fn of_query(
        self,
        lists: &mut Ranking,
        comparison: &Comparison,
        trained: &Trained,
    ) -> Result<Self, FaissError> {
        let Some(reach) = self.reach else {
            return Ok(self);
        };
        let Some(first) = lists.within(reach, self.first as usize, comparison, trained)? else {
            return Ok(self);
        };
        let first = (first as u32).max(LEAST_LISTS).min(lists.len() as u32);
        Ok(Self {
            first,
            mean: first.into(),
            most: most(first, lists.len() as u32),
            ..self
        })
    }

    /// How many lists a scan has read before it returns row number `row`, from 1, if the
    /// lists have `entries_per_list` entries on average.
    pub fn before_row(&self, row: f64, entries_per_list: f64) -> f64 {
        let more_rows = (row / RECALL_ROWS[0] as f64).max(1.0);
        let for_recall = self.mean * more_rows.powf(self.growth);
        let for_order = row * ENTRIES_PER_ROW as f64 / entries_per_list.max(1.0);
        (for_recall.max(for_order)).clamp(self.mean, self.most.into())
    }

    /// When a scan that has returned `returned` rows looks again whether it should read
    /// further lists: not for each row, for lists are read best several at a time.
    pub fn next_look(returned: u64) -> u64 {
        (2 * returned).max(RECALL_ROWS[0] as u64)
    }
}

/// How many of `lists` lists a scan may read that begins with `first`.
fn most(first: u32, lists: u32) -> u32 {
    match (options::iterative_scan(), options::max_probes()) {
        (IterativeScan::Off, _) => first,
        (_, None) => lists,
        (_, Some(most)) => most.clamp(first, lists),
    }
}

/// Of how many standard deviations of their estimates bounds on distances allow for a
/// search that is to find a share of `target` of the nearest rows: an estimate is off by
/// more, to one side, in half as many cases as rows may be missed. Few of these rows are
/// missed then, for a bound that is wrong matters only where it is beyond what is wanted.
///
/// The quantile of the normal distribution by formula 26.2.23 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions", whose error is less than 0.00045.
pub(super) fn deviations(target: f64) -> f32 {
    let tail = ((1.0 - target) / 2.0).max(LEAST_TAIL);
    let t = (-2.0 * tail.ln()).sqrt();
    let above = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    let below = 1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308));
    (t - above / below) as f32
}
