//! What a model computes on its way to a result, so that it can be compared with
//! another implementation of the same model, layer by layer.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

/// Hidden states by name, gathered where a computation is asked to.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// A name that comes several times has one more vector, or more, each time.
    parts: BTreeMap<String, Vec<Tensor>>,
}

impl Trace {
    /// Keeps a state, (vectors, width).
    pub(crate) fn add(&mut self, name: impl Into<String>, state: &Tensor) {
        let parts = self.parts.entry(name.into()).or_default();
        parts.push(state.clone());
    }

    /// All states by name, (vectors, width) each.
    pub(crate) fn into_tensors(self) -> Result<BTreeMap<String, Tensor>> {
        let join = |(name, parts): (String, Vec<Tensor>)| Ok((name, Tensor::cat(&parts, 0)?));
        self.parts.into_iter().map(join).collect()
    }
}

/// Keeps a state where a trace is wanted; elsewhere this costs a comparison, and
/// no name is made.
pub(crate) fn add<N: Into<String>>(
    trace: &mut Option<&mut Trace>,
    name: impl FnOnce() -> N,
    state: &Tensor,
) {
    if let Some(trace) = trace {
        trace.add(name(), state);
    }
}
