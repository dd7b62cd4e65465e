use std::sync::Arc;

use sight_protocol::ErrorCode;
use tokio::sync::oneshot::error::TryRecvError;

use super::{Batch, Queue};
use crate::error;
use crate::fake::{Fake, inputs, ticket};

fn ids(batch: &Batch<Fake>) -> Vec<u32> {
    batch.entries.iter().map(|entry| entry.input.id).collect()
}

fn next(queue: &Queue<Fake>) -> Vec<u32> {
    ids(&queue.next_batch().unwrap())
}

#[test]
fn a_batch_is_sorted_by_cost_and_keeps_to_the_budget() {
    let queue = Queue::<Fake>::new(10);
    let costs = [3, 1, 4, 1, 5, 9, 2, 6];
    let _answer = queue
        .submit(&ticket(), Arc::new(0), 0, inputs(0, &costs))
        .unwrap();
    let mut seen = Vec::new();
    let mut largest = Vec::new();
    while seen.len() < costs.len() {
        let batch = queue.next_batch().unwrap();
        let cost: Vec<usize> = batch.entries.iter().map(|entry| entry.input.cost).collect();
        assert!(cost.is_sorted(), "{cost:?}");
        assert!(cost.iter().sum::<usize>() <= 10, "{cost:?}");
        largest.extend(cost.last().copied());
        seen.extend(ids(&batch));
    }
    // The dearest come first, neighbours in cost together.
    assert!(largest.is_sorted_by(|a, b| a >= b), "{largest:?}");
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<u32>>());
}

#[test]
fn an_input_over_the_budget_goes_alone() {
    let queue = Queue::<Fake>::new(10);
    let _large = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[25, 1]));
    assert_eq!(next(&queue), [0]);
    assert_eq!(next(&queue), [1]);
}

#[test]
fn requests_share_a_batch() {
    let queue = Queue::<Fake>::new(10);
    let _first = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[3, 1]));
    let _second = queue.submit(&ticket(), Arc::new(0), 0, inputs(10, &[2]));
    assert_eq!(next(&queue), [1, 10, 0]);
}

#[test]
fn a_large_request_does_not_hold_up_a_small_one() {
    let queue = Queue::<Fake>::new(10);
    let _bulk = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[1; 100]));
    assert_eq!(next(&queue).len(), 10);
    let _small = queue.submit(&ticket(), Arc::new(0), 0, inputs(1000, &[2]));
    let batch = next(&queue);
    assert!(batch.contains(&1000), "{batch:?}");
    // What the small one leaves of its share is used.
    assert_eq!(batch.len(), 9);
}

#[test]
fn small_requests_are_computed_before_a_large_one_every_other_time() {
    let queue = Queue::<Fake>::new(80);
    let mut answers = vec![queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[1; 1000]))];
    assert_eq!(next(&queue).len(), 80);
    let mut small = |first_id, costs: &[usize]| {
        answers.push(queue.submit(&ticket(), Arc::new(0), 0, inputs(first_id, costs)));
    };
    small(2000, &[2]);
    small(3000, &[3, 4]);
    small(4000, &[1]);
    // 10 of 80 are an eighth.
    assert_eq!(next(&queue), [4000, 2000, 3000, 3001]);
    small(5000, &[1]);
    let batch = next(&queue);
    assert_eq!(batch.len(), 80);
    assert!(batch.contains(&5000));
    // Together they are not small.
    small(6000, &[6]);
    small(7000, &[6]);
    let batch = next(&queue);
    assert!(batch.contains(&6000) && batch.contains(&7000) && batch.len() > 60);
    small(8000, &[6]);
    assert_eq!(next(&queue), [8000]);
    // Without a large one there is nobody to be taken before.
    let queue = Queue::<Fake>::new(80);
    let _first = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[1]));
    let _second = queue.submit(&ticket(), Arc::new(0), 0, inputs(10, &[2]));
    assert_eq!(next(&queue), [0, 10]);
}

#[test]
fn more_requests_than_fit_take_turns() {
    let queue = Queue::<Fake>::new(2);
    let answers: Vec<_> = (0..4)
        .map(|request| {
            queue
                .submit(&ticket(), Arc::new(0), 0, inputs(request * 10, &[1; 2]))
                .unwrap()
        })
        .collect();
    assert_eq!(next(&queue), [1, 11]);
    assert_eq!(next(&queue), [21, 31]);
    assert_eq!(next(&queue), [0, 10]);
    assert_eq!(next(&queue), [20, 30]);
    drop(answers);
}

#[test]
fn a_batch_has_one_set_of_options() {
    let queue = Queue::<Fake>::new(10);
    let _first = queue.submit(&ticket(), Arc::new(7), 0, inputs(0, &[1]));
    let _other = queue.submit(&ticket(), Arc::new(8), 0, inputs(10, &[1]));
    let _same = queue.submit(&ticket(), Arc::new(7), 0, inputs(20, &[1]));
    let batch = queue.next_batch().unwrap();
    assert_eq!((ids(&batch), *batch.options), (vec![0, 20], 7));
    let batch = queue.next_batch().unwrap();
    assert_eq!((ids(&batch), *batch.options), (vec![10], 8));
}

#[test]
fn inputs_of_gone_clients_are_left_out() {
    let queue = Queue::<Fake>::new(10);
    let gone = ticket();
    let _gone = queue.submit(&gone, Arc::new(0), 0, inputs(0, &[5, 5]));
    let _here = queue.submit(&ticket(), Arc::new(0), 0, inputs(10, &[1]));
    gone.cancel();
    assert_eq!(next(&queue), [10]);
    queue.finish(error::shutting_down());
    assert!(queue.next_batch().is_none());
}

#[test]
fn an_answer_is_in_input_order_and_complete() {
    let queue = Queue::<Fake>::new(4);
    let ticket = ticket();
    let mut answer = queue
        .submit(&ticket, Arc::new(0), 0, inputs(0, &[1, 4, 2, 3]))
        .unwrap();
    assert!(!ticket.has_started());
    for left in (0..3).rev() {
        let batch = queue.next_batch().unwrap();
        assert!(ticket.has_started());
        for entry in &batch.entries {
            assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
            entry.store(entry.input.id * 100);
        }
        if left > 0 {
            assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
        }
    }
    assert_eq!(answer.try_recv().unwrap(), Ok(vec![0, 100, 200, 300]));
}

#[test]
fn a_failed_input_is_named_and_the_rest_of_its_request_dropped() {
    let queue = Queue::<Fake>::new(2);
    let mut answer = queue
        .submit(&ticket(), Arc::new(0), 100, inputs(0, &[1, 1, 1, 2]))
        .unwrap();
    let batch = queue.next_batch().unwrap();
    assert_eq!(ids(&batch), [3]);
    batch.entries[0].fail(error::internal("planned"));
    let error = answer.try_recv().unwrap().unwrap_err();
    assert_eq!((error.message.as_str(), error.item), ("planned", Some(103)));
    queue.finish(error::shutting_down());
    assert!(queue.next_batch().is_none());
}

#[test]
fn nothing_is_waited_for_when_there_is_nothing() {
    let queue = Queue::<Fake>::new(2);
    let mut answer = queue.submit(&ticket(), Arc::new(0), 0, Vec::new()).unwrap();
    assert_eq!(answer.try_recv().unwrap(), Ok(Vec::new()));
}

#[test]
fn a_refusing_queue_answers_those_who_wait_and_those_who_come() {
    let queue = Queue::<Fake>::new(2);
    let mut waiting = queue
        .submit(&ticket(), Arc::new(0), 0, inputs(0, &[1]))
        .unwrap();
    queue.refuse(error::shutting_down());
    let error = waiting.try_recv().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ShuttingDown);
    let late = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[1]));
    assert_eq!(late.unwrap_err().code, ErrorCode::ShuttingDown);
    assert!(queue.next_batch().is_none());
}

#[test]
fn an_output_that_comes_after_the_refusal_is_too_late() {
    let queue = Queue::<Fake>::new(1);
    let mut answer = queue
        .submit(&ticket(), Arc::new(0), 0, inputs(0, &[1, 1]))
        .unwrap();
    let batch = queue.next_batch().unwrap();
    assert_eq!(batch.entries.len(), 1);
    queue.refuse(error::shutting_down());
    for entry in &batch.entries {
        entry.store(7);
    }
    let error = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::ShuttingDown);
}

#[test]
fn a_finishing_queue_still_hands_out_what_waits() {
    let queue = Queue::<Fake>::new(2);
    let _waiting = queue.submit(&ticket(), Arc::new(0), 0, inputs(0, &[1]));
    queue.finish(error::shutting_down());
    assert_eq!(next(&queue), [0]);
    assert!(queue.next_batch().is_none());
}
