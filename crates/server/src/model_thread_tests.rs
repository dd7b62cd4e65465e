use std::sync::Arc;
use std::time::{Duration, Instant};

use sight_protocol::{Counter, ErrorCode, ModelTask};

use super::ModelHandle;
use crate::activity::{Activity, Ticket};
use crate::fake::{Fake, Fault, Input, SAMPLE, inputs, ticket};
use crate::queue::Outputs;
use crate::statistics::Statistics;

type Answer = tokio::sync::oneshot::Receiver<Outputs<Fake>>;

fn submit(model: &ModelHandle<Fake>, inputs: Vec<Input>) -> Answer {
    model
        .queue
        .submit(&ticket(), Arc::new(0), 0, inputs)
        .unwrap()
}

#[test]
fn batches_form_while_the_model_is_busy() {
    let model = ModelHandle::start(Fake::new(false), 10).unwrap();
    let first = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    let second = submit(&model, inputs(10, &[2]));
    let third = submit(&model, inputs(20, &[1]));
    model.engine.open_gate();
    assert_eq!(first.blocking_recv().unwrap(), Ok(vec![0]));
    assert_eq!(second.blocking_recv().unwrap(), Ok(vec![10]));
    assert_eq!(third.blocking_recv().unwrap(), Ok(vec![20]));
    assert_eq!(model.engine.batches(), [vec![0], vec![20, 10]]);
}

#[test]
fn a_poisoned_input_fails_alone() {
    for fault in [Fault::Error, Fault::Panic] {
        let model = ModelHandle::start(Fake::new(false), 100).unwrap();
        let first = submit(&model, inputs(0, &[1]));
        model.engine.wait_until_busy();
        let good: Vec<Answer> = (1..6)
            .map(|request| submit(&model, inputs(request * 10, &[1, 1])))
            .collect();
        let mut bad = inputs(100, &[1, 1, 1]);
        bad[1].fault = fault;
        let bad = submit(&model, bad);
        model.engine.open_gate();

        assert_eq!(first.blocking_recv().unwrap(), Ok(vec![0]));
        for (request, answer) in (1..6).zip(good) {
            assert_eq!(
                answer.blocking_recv().unwrap(),
                Ok(vec![request * 10, request * 10 + 1])
            );
        }
        let error = bad.blocking_recv().unwrap().unwrap_err();
        assert_eq!(error.item, Some(1));
        let expected = match fault {
            Fault::Panic => ErrorCode::Internal,
            Fault::Error | Fault::None => ErrorCode::OutOfDeviceMemory,
        };
        assert_eq!(error.code, expected);
        // The whole batch, then halves: far fewer than one for each input.
        assert!(
            model.engine.batches().len() < 12,
            "{:?}",
            model.engine.batches()
        );
        // The thread has survived.
        let after = submit(&model, inputs(200, &[1]));
        assert_eq!(after.blocking_recv().unwrap(), Ok(vec![200]));
    }
}

#[test]
fn a_request_that_has_failed_is_not_computed_further() {
    let model = ModelHandle::start(Fake::new(true), 100).unwrap();
    let mut all_bad = inputs(0, &[1; 64]);
    for input in &mut all_bad {
        input.fault = Fault::Error;
    }
    let error = submit(&model, all_bad)
        .blocking_recv()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfDeviceMemory);
    let after = submit(&model, inputs(100, &[1]));
    assert_eq!(after.blocking_recv().unwrap(), Ok(vec![100]));
    // 64, 32, ..., 1, and the one that came after.
    assert_eq!(model.engine.batches().len(), 8);
}

#[test]
fn a_client_that_goes_during_the_batch_harms_nobody() {
    let model = ModelHandle::start(Fake::new(false), 100).unwrap();
    let first = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    let gone = ticket();
    let lost = model
        .queue
        .submit(&gone, Arc::new(0), 0, inputs(10, &[1]))
        .unwrap();
    let here = submit(&model, inputs(20, &[1]));
    gone.cancel();
    drop(lost);
    model.engine.open_gate();
    assert_eq!(first.blocking_recv().unwrap(), Ok(vec![0]));
    assert_eq!(here.blocking_recv().unwrap(), Ok(vec![20]));
    assert_eq!(model.engine.batches(), [vec![0], vec![20]]);
}

#[test]
fn a_dropped_model_finishes_its_work_and_is_freed() {
    let model = ModelHandle::start(Fake::new(false), 100).unwrap();
    let engine = Arc::downgrade(&model.engine);
    let running = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    let waiting = submit(&model, inputs(1, &[1]));
    model.engine.open_gate();
    drop(model);
    assert_eq!(running.blocking_recv().unwrap(), Ok(vec![0]));
    assert_eq!(waiting.blocking_recv().unwrap(), Ok(vec![1]));
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.strong_count() > 0 {
        assert!(Instant::now() < deadline, "the model is not freed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_batch_that_exhausts_the_memory_is_halved_until_it_fits() {
    let model = ModelHandle::start(Fake::with_memory(false, 2), 100).unwrap();
    let first = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    let statistics = Statistics::new();
    let counters = statistics.of("m", ModelTask::Embed);
    let activity = Arc::new(Activity::new(10));
    let ticket = activity.admit(&counters).unwrap();
    let whole = model
        .queue
        .submit(&ticket, Arc::new(0), 0, inputs(10, &[1; 8]));
    model.engine.open_gate();
    assert_eq!(first.blocking_recv().unwrap(), Ok(vec![0]));
    let ids: Vec<u32> = (10..18).collect();
    assert_eq!(whole.unwrap().blocking_recv().unwrap(), Ok(ids));
    let counted = statistics.snapshot();
    // 8, 4 and 4 do not fit; 2, 2, 2 and 2 do.
    let counts = [
        (Counter::OomSplits, 3),
        (Counter::Batches, 4),
        (Counter::BatchItems, 8),
        (Counter::LargestBatch, 2),
    ];
    for (counter, count) in counts {
        assert_eq!(counted.models[0][counter], count, "{counter:?}");
    }
    assert!(counted.models[0][Counter::QueueTime] > 0);

    // A single input that does not fit is an error, and of its request alone.
    let large = submit(&model, inputs(30, &[3]));
    let error = large.blocking_recv().unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfDeviceMemory);
}

fn pass() -> Arc<Ticket> {
    Arc::new(Activity::new(0)).pass()
}

#[tokio::test]
async fn a_probe_is_a_forward_pass() {
    let model = ModelHandle::start(Fake::new(true), 100).unwrap();
    model.probe(&pass()).await.unwrap();
    assert_eq!(model.engine.batches(), [vec![SAMPLE]]);
    model.warm_up(&pass()).await.unwrap();
    assert_eq!(model.engine.batches().len(), 2);
}

#[tokio::test]
async fn a_probe_tells_a_busy_model_from_one_that_hangs() {
    let model = ModelHandle::start(Fake::new(false), 100).unwrap();
    let _work = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    // As long as the batch does not get on.
    let ticket = pass();
    let probe = model.probe(&ticket);
    tokio::pin!(probe);
    let time = Duration::from_millis(400);
    assert!(tokio::time::timeout(time, &mut probe).await.is_err());
    // A step of the batch is enough, its end is not awaited.
    model.pulse.beat();
    probe.await.unwrap();
    assert!(model.engine.batches().len() == 1);
    model.engine.open_gate();
}

#[tokio::test]
async fn a_probe_that_is_given_up_is_not_computed() {
    let model = ModelHandle::start(Fake::new(false), 100).unwrap();
    let work = submit(&model, inputs(0, &[1]));
    model.engine.wait_until_busy();
    let ticket = pass();
    let time = Duration::from_millis(10);
    assert!(
        tokio::time::timeout(time, model.probe(&ticket))
            .await
            .is_err()
    );
    model.engine.open_gate();
    assert_eq!(work.await.unwrap(), Ok(vec![0]));
    let after = submit(&model, inputs(1, &[1]));
    assert_eq!(after.await.unwrap(), Ok(vec![1]));
    assert_eq!(model.engine.batches(), [vec![0], vec![1]]);
}
