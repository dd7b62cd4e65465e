use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sight_protocol::{ErrorCode, ErrorReply};
use tokio::sync::Semaphore;

use super::{Cut, Pipeline};
use crate::error;
use crate::fake::{Fake, Fault, Input, ticket};
use crate::model_thread::ModelHandle;

const CUT: Cut = Cut {
    window: 8,
    piece: 3,
};

fn prepare(id: u32) -> Input {
    Input {
        id,
        cost: 1 + id as usize % 5,
        fault: Fault::None,
    }
}

async fn run(
    model: &ModelHandle<Fake>,
    count: u32,
    prepare: impl Fn(u32) -> Result<Input, ErrorReply> + Send + Sync + 'static,
) -> Result<Vec<u32>, ErrorReply> {
    let pipeline = Pipeline {
        model,
        ticket: &ticket(),
        options: Arc::new(0),
        cut: CUT,
        preparing: &Arc::new(Semaphore::new(2)),
    };
    pipeline
        .run((0..count).collect(), move |_, id| prepare(*id))
        .await
}

#[tokio::test]
async fn outputs_are_in_input_order() {
    let model = ModelHandle::start(Fake::new(true), 11).unwrap();
    for count in [0, 1, 7, 8, 9, 100] {
        let outputs = run(&model, count, |id| Ok(prepare(id))).await;
        assert_eq!(outputs, Ok((0..count).collect()));
    }
}

#[tokio::test]
async fn an_input_that_cannot_be_prepared_is_named() {
    let model = ModelHandle::start(Fake::new(true), 11).unwrap();
    let refuse = |id| match id {
        13 => Err(error::reply(ErrorCode::InvalidImage, "planned")),
        _ => Ok(prepare(id)),
    };
    let error = run(&model, 20, refuse).await.unwrap_err();
    assert_eq!(
        (error.code, error.item),
        (ErrorCode::InvalidImage, Some(13))
    );
    let panic = |id| match id {
        19 => panic!("planned"),
        _ => Ok(prepare(id)),
    };
    let error = run(&model, 20, panic).await.unwrap_err();
    assert_eq!((error.code, error.item), (ErrorCode::Internal, Some(19)));
}

#[tokio::test]
async fn an_input_that_cannot_be_computed_is_named() {
    let model = ModelHandle::start(Fake::new(true), 11).unwrap();
    let error = run(&model, 20, |id| {
        Ok(Input {
            fault: if id == 17 { Fault::Error } else { Fault::None },
            ..prepare(id)
        })
    })
    .await
    .unwrap_err();
    assert_eq!(error.item, Some(17));
}

#[tokio::test]
async fn preparing_keeps_a_few_windows_ahead_and_no_more() {
    let model = ModelHandle::start(Fake::new(false), 1000).unwrap();
    let prepared = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&prepared);
    let work = run(&model, 80, move |id| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(prepare(id))
    });
    tokio::pin!(work);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut work).await;
    assert!(early.is_err());
    // One window in the model, one in the queue, one ready for it.
    assert_eq!(prepared.load(Ordering::SeqCst), 3 * CUT.window);
    model.engine.open_gate();
    assert_eq!(work.await, Ok((0..80).collect()));
}
