//! A model for tests: it answers each input with its id, records its batches,
//! fails on inputs that ask for it, and computes only while its gate is open.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sight_models::Watch;
use sight_protocol::{ErrorCode, ErrorReply};

use crate::activity::{Activity, Ticket};
use crate::engine::Engine;
use crate::error;

/// Id of the input that the model makes itself.
pub const SAMPLE: u32 = 999_999;

/// What an input does to its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Error,
    Panic,
}

#[derive(Debug, Clone, Copy)]
pub struct Input {
    pub id: u32,
    pub cost: usize,
    pub fault: Fault,
}

/// Inputs without faults, their ids counted from `first_id`.
pub fn inputs(first_id: u32, costs: &[usize]) -> Vec<Input> {
    (first_id..)
        .zip(costs)
        .map(|(id, &cost)| Input {
            id,
            cost,
            fault: Fault::None,
        })
        .collect()
}

/// A ticket of a queue without a limit.
pub fn ticket() -> Arc<Ticket> {
    let activity = Arc::new(Activity::new(usize::MAX));
    activity.admit(&Arc::default()).unwrap()
}

#[derive(Debug)]
struct Gate {
    open: bool,
    /// The model waits at the gate with a batch.
    arrived: bool,
}

#[derive(Debug)]
pub struct Fake {
    /// The most that a batch may cost: a dearer one exhausts the device's memory.
    memory: usize,
    batches: Mutex<Vec<Vec<u32>>>,
    gate: Mutex<Gate>,
    moved: Condvar,
}

impl Fake {
    pub fn new(open: bool) -> Self {
        Self::with_memory(open, usize::MAX)
    }

    /// A model on a device that has not memory for every batch.
    pub fn with_memory(open: bool, memory: usize) -> Self {
        Self {
            memory,
            batches: Mutex::new(Vec::new()),
            gate: Mutex::new(Gate {
                open,
                arrived: false,
            }),
            moved: Condvar::new(),
        }
    }

    pub fn open_gate(&self) {
        self.gate.lock().unwrap().open = true;
        self.moved.notify_all();
    }

    /// Waits until the model stands at the closed gate with a batch.
    pub fn wait_until_busy(&self) {
        let gate = self.gate.lock().unwrap();
        let (gate, timeout) = self
            .moved
            .wait_timeout_while(gate, Duration::from_secs(10), |gate| !gate.arrived)
            .unwrap();
        assert!(!timeout.timed_out(), "no batch came");
        drop(gate);
    }

    /// The ids of each batch it was given.
    pub fn batches(&self) -> Vec<Vec<u32>> {
        self.batches.lock().unwrap().clone()
    }
}

impl Engine for Fake {
    type Input = Input;
    type Options = u32;
    type Output = u32;

    fn cost(input: &Input) -> usize {
        input.cost
    }

    fn samples(&self, cost: usize) -> Result<(Vec<Input>, u32), ErrorReply> {
        Ok((inputs(SAMPLE, &[cost]), 0))
    }

    fn compute(
        &self,
        inputs: &[&Input],
        _options: &u32,
        watch: &Watch<'_>,
    ) -> Result<Vec<Option<u32>>, ErrorReply> {
        let ids = inputs.iter().map(|input| input.id).collect();
        self.batches.lock().unwrap().push(ids);
        let mut gate = self.gate.lock().unwrap();
        gate.arrived = true;
        self.moved.notify_all();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gate.open {
            assert!(Instant::now() < deadline, "the gate stays closed");
            gate = self
                .moved
                .wait_timeout(gate, Duration::from_millis(100))
                .unwrap()
                .0;
        }
        drop(gate);
        if inputs.iter().any(|input| input.fault == Fault::Panic) {
            panic!("planned");
        }
        if inputs.iter().any(|input| input.fault == Fault::Error) {
            return Err(error::reply(ErrorCode::OutOfDeviceMemory, "planned"));
        }
        if inputs.iter().map(|input| input.cost).sum::<usize>() > self.memory {
            return Err(error::reply(ErrorCode::OutOfDeviceMemory, "too large"));
        }
        let outputs = inputs
            .iter()
            .enumerate()
            .map(|(row, input)| (!(watch.cancelled)(row)).then_some(input.id));
        Ok(outputs.collect())
    }
}
