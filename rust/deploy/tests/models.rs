//! Real models on the emulated board: the same bytes as on the host, refusals, and a board that dies
//! half way. What these tests need is told in `emulated.rs`.

mod common;
#[path = "common/needs.rs"]
mod needs;

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use cbin_nn_deploy::{BoardError, DeployError, Options, Progress, Session, bench, board};
use cbin_nn_model::{batch::OwnedModel, writer::seal};
use cbin_nn_protocol::{self as protocol, MAX_CHUNK_BYTES, MAX_FRAME_BYTES, Request, Response};
use common::{Seed, model};
use needs::{BOARD, go_on, needs, open, short, signal};

/// What the host makes of the images.
fn on_the_host(model: &[u8], images: &[u8], count: usize) -> Vec<u8> {
    let model = OwnedModel::new(model).unwrap();
    let mut outputs = vec![0_u32; count * model.view().output_bytes() / 4];
    model.run_batch(images, bytemuck::cast_slice_mut(&mut outputs), 1).unwrap();
    bytemuck::cast_slice(&outputs).to_vec()
}

#[test]
fn the_board_gives_the_hosts_bytes_and_the_same_counts_twice() {
    let Some(runner) = needs() else { return };
    // The second model's image and tensors take many more messages than the first's.
    for (side, count) in [(32, 8), (72, 2)] {
        let model = model(side);
        let images = Seed(7).bytes(side * side * 3 * count);
        let run = || {
            let mut seen = Vec::new();
            let start = Instant::now();
            let run = bench(
                board(BOARD).unwrap(),
                &runner,
                &model,
                &images,
                count,
                Options::default(),
                &mut |progress| {
                    match progress {
                        Progress::Images(done) => seen.push(done),
                        other => panic!("an emulator has no flash: {other:?}"),
                    }
                    ControlFlow::Continue(())
                },
            )
            .unwrap();
            println!("{side}: {:?} for {count} images, {:?}", start.elapsed(), run.totals);
            seen.dedup();
            assert!(seen.ends_with(&(1..=count).collect::<Vec<_>>()) && seen.is_sorted());
            run
        };
        let first = run();
        assert_eq!(first.outputs, on_the_host(&model, &images, count));
        assert_eq!(first.model.operators, 3);
        assert_eq!(first.counts.len(), 3 * count);
        for (image, total) in first.totals.iter().enumerate() {
            let counts = &first.counts[3 * image..][..3];
            assert_eq!(counts.iter().sum::<u64>(), *total);
            assert!(counts.iter().all(|&count| count > 0 && count % 40 == 0), "{counts:?}");
        }
        println!("{side}: counts {:?}, stack {} bytes", &first.counts[..3], first.stack_bytes);
        assert!((200..first.info.stack_bytes).contains(&first.stack_bytes));
        assert_eq!(first, run());
    }
}

#[test]
fn a_bad_model_then_a_good_one() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let good = model(32);
    let image = Seed(1).bytes(3072);
    let expected = on_the_host(&good, &image, 1);

    let mut seed = Seed(99);
    let start = Instant::now();
    let rounds = 300;
    let mut refused = 0;
    for round in 0..rounds {
        let mut bad = good.clone();
        let at = seed.below(bad.len() as u32) as usize;
        bad[at] ^= 1 << seed.below(8);
        if round % 2 == 0 {
            // A checksum that fits: the damage reaches the fields' own checks, or is a valid model.
            seal(&mut bad);
        }
        match (session.load_unchecked(&bad, &mut go_on), OwnedModel::new(&bad)) {
            (Ok(opened), Ok(model)) => {
                assert_eq!(opened.arena_bytes as usize, model.view().arena_bytes());
            }
            (Err(error), Err(reason)) => {
                refused += 1;
                assert_eq!(error.slug(), "model-invalid");
                assert_eq!(error.to_string(), format!("{BOARD}, loading the model: {reason}"));
            }
            (board, host) => panic!("board {board:?}, host {host:?}"),
        }
    }
    println!("{refused} of {rounds} refused, {:?} each", start.elapsed() / rounds);
    assert!(refused >= rounds / 2);

    let opened = session.load_unchecked(&good, &mut go_on).unwrap();
    assert_eq!((opened.input_bytes, opened.output_bytes), (3072, 40));
    let run = session.run_image(&image, 1, 1, &mut go_on).unwrap();
    assert_eq!(run.output, expected);
    // A refused model leaves none open: the old one must not run on the new one's bytes.
    session.load_unchecked(&good[..100], &mut go_on).unwrap_err();
    let error = session.run_image(&image, 1, 1, &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "session-misuse");
}

#[test]
fn a_model_too_large_for_the_ram_is_refused_before_it_runs() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let error = session.load_model(&model(640), &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "arena-too-small");
    match &error {
        DeployError::ArenaTooSmall { needed, available, .. } => {
            assert!(*needed > 640 * 640 * 3 && *available == 1 << 20);
        }
        other => panic!("{other}"),
    }
    // The board's own check is the second line, and comes to the same number.
    let second = session.load_unchecked(&model(640), &mut go_on).unwrap_err();
    assert_eq!(second.to_string(), error.to_string());
    assert!(session.load_model(&model(32), &mut go_on).is_ok());
}

#[test]
fn every_request_in_the_wrong_state_is_refused() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    session.load_unchecked(&model(32), &mut go_on).unwrap();
    let full = [9; MAX_CHUNK_BYTES];
    let mut ask = |request: Request<'_>| {
        let mut frame = [0; MAX_FRAME_BYTES];
        let length = protocol::encode(&request, &mut frame).unwrap();
        session.raw(&frame[..length], 1, &mut go_on).unwrap().remove(0)
    };
    let input = |offset, data| Request::WriteInput { offset, data };
    let output = |offset, bytes| Request::ReadOutput { offset, bytes };
    let counts = |first| Request::ReadCounts { first };
    let out_of_range = |end, limit| Response::Error(BoardError::OutOfRange { end, limit });
    let incomplete = |written| Response::Error(BoardError::InputIncomplete { written, needed: 3072 });
    let out_of_order = |offset, expected| Response::Error(BoardError::OutOfOrder { offset, expected });
    let not_run = Response::Error(BoardError::NotRun);
    let steps = [
        (Request::Run, incomplete(0)),
        (output(0, 1), not_run),
        (counts(0), not_run),
        (input(1, &full[..1]), out_of_order(1, 0)),
        (input(u32::MAX, &full), out_of_order(u32::MAX, 0)),
        (input(0, &full), Response::InputWritten),
        (input(992, &full), Response::InputWritten),
        (Request::Run, incomplete(1984)),
        (input(992, &full), out_of_order(992, 1984)),
        (input(1984, &full), Response::InputWritten),
        (input(2976, &full), out_of_range(3968, 3072)),
        (input(2976, &full[..97]), out_of_range(3073, 3072)),
        (input(2976, &full[..96]), Response::InputWritten),
        (input(3072, &[]), Response::InputWritten),
        (input(3072, &[1]), out_of_range(3073, 3072)),
    ];
    for (request, expected) in steps {
        assert_eq!(protocol::decode::<Response<'_>>(&ask(request)), Ok(expected), "{request:?}");
    }
    let ran = ask(Request::Run);
    assert!(matches!(protocol::decode(&ran), Ok(Response::Ran(_))));
    let steps = [
        (output(40, 0), Response::Output { data: &[] }),
        (output(0, 41), out_of_range(41, 40)),
        (output(u32::MAX, u32::MAX), out_of_range(u32::MAX, 40)),
        (counts(3), Response::Counts { first: 3, data: &[] }),
        (counts(4), out_of_range(4, 3)),
        (counts(u32::MAX), out_of_range(u32::MAX, 3)),
        // A new image makes the old results disappear.
        (input(0, &full), Response::InputWritten),
        (output(0, 40), not_run),
        (counts(0), not_run),
        (Request::CloseModel, Response::Closed),
        (Request::Run, Response::Error(BoardError::NoModel)),
    ];
    for (request, expected) in steps {
        assert_eq!(protocol::decode::<Response<'_>>(&ask(request)), Ok(expected), "{request:?}");
    }
}

/// Runs images until `hurt` strikes after image 3, and returns the error and the image it struck.
fn struck(session: &mut Session, side: usize, hurt: &dyn Fn(u32)) -> (DeployError, usize) {
    session.load_unchecked(&model(side), &mut go_on).unwrap();
    let image = Seed(3).bytes(side * side * 3);
    let process = session.process_id().unwrap();
    for number in 1..=100 {
        if number == 4 {
            hurt(process);
        }
        if let Err(error) = session.run_image(&image, number, 100, &mut go_on) {
            return (error, number);
        }
    }
    panic!("a hundred images ran");
}

#[test]
fn an_emulator_killed_half_way_is_an_error_that_names_the_image() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let (error, number) = struck(&mut session, 72, &|process| {
        // Strikes in the middle of a run.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(15));
            signal(process, "-KILL");
        });
    });
    assert_eq!(error.slug(), "emulator-exited", "{error}");
    let message = error.to_string();
    assert!(message.contains(&format!("{BOARD}, image {number} of 100: the emulator ended")));
    assert!(message.contains("signal: 9"), "{message}");
}

#[test]
fn an_emulator_stopped_half_way_is_a_timeout_that_names_the_image() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, short()).unwrap();
    let (error, _) = struck(&mut session, 32, &|process| signal(process, "-STOP"));
    assert_eq!(error.slug(), "board-timeout", "{error}");
    assert!(error.to_string().contains("image 4 of 100: no answer within 1.5 s"), "{error}");
}

#[test]
fn the_callback_stops_a_bench() {
    let Some(runner) = needs() else { return };
    let images = Seed(5).bytes(3072 * 4);
    let mut stop = |progress| {
        if progress == Progress::Images(2) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let board = board(BOARD).unwrap();
    let options = Options::default;
    let error = bench(board, &runner, &model(32), &images, 4, options(), &mut stop).unwrap_err();
    assert_eq!(error.slug(), "interrupted");
    assert!(error.to_string().contains("image 3 of 4"), "{error}");

    let mut go = |_| ControlFlow::Continue(());
    let error = bench(board, &runner, &model(32), &images, 3, options(), &mut go).unwrap_err();
    assert_eq!(error.slug(), "images-invalid");
}
