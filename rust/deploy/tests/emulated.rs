//! The emulated board, from the outside: the real emulator, the real runner.
//!
//! These tests need `qemu-system-arm` and a runner (`make firmware`). Without them each is skipped
//! with its reason on standard error, or fails where `CBIN_NN_REQUIRE_ALL=1`.

#[path = "common/needs.rs"]
mod needs;

use std::{
    env, fs,
    ops::ControlFlow,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cbin_nn_deploy::{BoardError, Counter, Options, SPIN_INSTRUCTIONS, Session, board};
use cbin_nn_protocol::{self as protocol, MAX_FRAME_BYTES, Request, Response};
use needs::{BOARD, go_on, needs, open, short, signal};

fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut frame = [0; MAX_FRAME_BYTES];
    let length = protocol::encode(request, &mut frame).unwrap();
    frame[..length].to_vec()
}

/// Sends bytes and decodes the answers.
fn answers(session: &mut Session, bytes: &[u8], count: usize, check: impl Fn(usize, Response<'_>)) {
    let frames = session.raw(bytes, count, &mut go_on).unwrap();
    assert_eq!(frames.len(), count);
    for (index, frame) in frames.iter().enumerate() {
        check(index, protocol::decode(frame).unwrap());
    }
}

#[test]
fn the_board_introduces_itself() {
    let Some(runner) = needs() else { return };
    let session = open(&runner, Options::default()).unwrap();
    let info = session.info();
    assert_eq!(info.runner_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.counter, Counter::Instructions);
    assert_eq!(info.counter_resolution, 40);
    assert_eq!(info.model_address, 0x6010_0000);
    assert_eq!(info.model_bytes, 15 << 20);
    assert_eq!(info.workspace_bytes, 1 << 20);
    assert!((2048..8192).contains(&info.ram_transport_bytes));
    assert!(info.ram_other_bytes < 1024);
    assert!((4096..256 << 10).contains(&info.code_bytes));
}

#[test]
fn the_counter_is_exact_to_a_tick_and_repeats() {
    let Some(runner) = needs() else { return };
    let lengths = [1, 2, 19, 20, 21, 100, 101, 1000, 12_345, 1_000_003, 50_000_000];
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut session = open(&runner, Options::default()).unwrap();
        let counts: Vec<u64> = lengths
            .iter()
            .chain(&lengths)
            .map(|&iterations| session.spin(iterations, &mut go_on).unwrap())
            .collect();
        for (&iterations, &count) in lengths.iter().cycle().zip(&counts) {
            let truth = u64::from(iterations) * SPIN_INSTRUCTIONS;
            println!("{truth} instructions, counted {count}");
            assert!(count.abs_diff(truth) <= 40, "{truth} instructions, counted {count}");
            assert_eq!(count % 40, 0);
        }
        assert_eq!(counts[..lengths.len()], counts[lengths.len()..]);
        runs.push(counts);
    }
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn garbage_is_answered_and_the_session_goes_on() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let hello = frame(&Request::Hello);
    let is_hello = |_: usize, response: Response<'_>| {
        assert!(matches!(response, Response::Hello(_)), "{response:?}");
    };
    let error = |expected: BoardError| {
        move |_: usize, response: Response<'_>| assert_eq!(response, Response::Error(expected))
    };

    // Nonsense between zeros, of every length up to a frame and beyond what COBS can mean.
    let mut seed = 0x9E37_79B9_u32;
    for length in (1..40).chain([253, 254, 255, 256, 1000, 1022, 1023]) {
        let mut bytes: Vec<u8> = (0..length)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8 | 1
            })
            .collect();
        bytes.push(0);
        answers(&mut session, &bytes, 1, |_, response| {
            assert!(matches!(response, Response::Error(_) | Response::Spun { .. }), "{response:?}");
        });
        answers(&mut session, &hello, 1, is_hello);
    }
    // Longer than any frame, and far longer than the channel: discarded up to the zero.
    for length in [1024, 1025, 2048, 2049, 50_000] {
        let mut bytes = vec![0xAB; length];
        bytes.push(0);
        answers(&mut session, &bytes, 1, error(BoardError::FrameTooLong));
    }
    // A truncated frame, an unknown request, bytes after a request, empty frames.
    answers(&mut session, &[5, 1, 0], 1, error(BoardError::BadFrame));
    answers(&mut session, &[2, 200, 0], 1, error(BoardError::BadFrame));
    answers(&mut session, &[1, 2, 7, 0], 1, error(BoardError::BadFrame));
    answers(&mut session, &[&[0, 0, 0][..], &hello].concat(), 1, is_hello);
    // More requests at once than either channel holds answers.
    answers(&mut session, &hello.repeat(500), 500, is_hello);
    // A request in two halves.
    assert!(session.raw(&hello[..1], 0, &mut go_on).unwrap().is_empty());
    answers(&mut session, &hello[1..], 1, is_hello);
}

#[test]
fn requests_out_of_order_are_refused() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    for request in [
        Request::Run,
        Request::WriteInput { offset: 0, data: &[1] },
        Request::ReadOutput { offset: 0, bytes: 1 },
        Request::ReadCounts { first: 0 },
    ] {
        answers(&mut session, &frame(&request), 1, |_, response| {
            assert_eq!(response, Response::Error(BoardError::NoModel));
        });
    }
    let open = frame(&Request::OpenModel { bytes: u32::MAX });
    answers(&mut session, &open, 1, |_, response| {
        let (needed, available) = (u32::MAX, 15 << 20);
        assert_eq!(response, Response::Error(BoardError::ModelTooLarge { needed, available }));
    });
    let error = session.run_image(&[], 1, 1, &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "session-misuse");
}

#[test]
fn a_model_that_is_none_is_refused_at_once() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let start = Instant::now();
    let rounds = 200;
    for round in 0..rounds {
        let error = session.load_unchecked(&vec![round as u8; round], &mut go_on).unwrap_err();
        assert_eq!(error.slug(), "model-invalid", "{error}");
        assert!(error.to_string().starts_with("qemu-mps2-an500, loading the model: "));
    }
    println!("{:?} for a refused model", start.elapsed() / rounds as u32);
    let error = session.load_unchecked(&vec![0; (15 << 20) + 1], &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "model-too-large");
    assert!(session.spin(10, &mut go_on).is_ok());
}

#[test]
fn a_killed_emulator_is_an_error_that_names_the_step() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    signal(session.process_id().unwrap(), "-KILL");
    let error = session.spin(1000, &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "emulator-exited");
    let message = error.to_string();
    assert!(message.contains("qemu-mps2-an500, testing the counter"), "{message}");
    assert!(message.contains("signal: 9"), "{message}");
    // The session knows that it is over.
    let error = session.spin(1000, &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "session-misuse");
}

#[test]
fn a_stopped_emulator_is_a_timeout() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, short()).unwrap();
    let process = session.process_id().unwrap();
    signal(process, "-STOP");
    let error = session.spin(1000, &mut go_on).unwrap_err();
    assert_eq!(error.slug(), "board-timeout");
    let message = error.to_string();
    assert!(message.contains("testing the counter: no answer within 1.5 s"), "{message}");
    // Dropping the session ends even a stopped process, at once.
    let start = Instant::now();
    drop(session);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(!Path::new(&format!("/proc/{process}")).exists());
}

#[test]
fn the_watch_can_stop_a_wait() {
    let Some(runner) = needs() else { return };
    let mut session = open(&runner, Options::default()).unwrap();
    let start = Instant::now();
    let error = session.spin(u32::MAX, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.slug(), "interrupted");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_missing_emulator_says_what_to_install() {
    let Some(runner) = needs() else { return };
    for program in ["qemu-system-nowhere", "/nowhere/qemu-system-arm"] {
        let mut options = Options::default();
        options.qemu = program.into();
        let error = open(&runner, options).err().unwrap();
        assert_eq!(error.slug(), "emulator-missing");
        assert!(error.to_string().contains("apt-get install qemu-system-arm"));
    }
}

#[test]
fn an_emulator_that_ends_at_once_is_quoted() {
    let Some(runner) = needs() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("qemu");
    fs::write(&program, "#!/bin/sh\necho 'no such machine' >&2\nexit 3\n").unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&program).status().unwrap().success());
    let mut options = Options::default();
    options.qemu = program.into();
    let error = open(&runner, options).err().unwrap();
    assert_eq!(error.slug(), "emulator-exited");
    let message = error.to_string();
    assert!(message.contains("start: the emulator ended (exit status: 3): no such machine"), "{message}");
}

#[test]
fn a_wrong_runner_is_known_before_it_runs() {
    let Some(runner) = needs() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runner.elf");
    let slug = |path: &Path| open(path, Options::default()).err().unwrap().slug();
    assert_eq!(slug(&path), "runner-missing");
    assert_eq!(slug(folder.path()), "runner-missing");
    fs::write(&path, "").unwrap();
    assert_eq!(slug(&path), "runner-invalid");
    assert_eq!(slug(&env::current_exe().unwrap()), "runner-invalid");

    // Another board's.
    let mut bytes = fs::read(&runner).unwrap();
    let mark = b"cbin-nn-runner board=qemu";
    let at = bytes.windows(mark.len()).position(|window| window == mark).unwrap();
    bytes[at + mark.len() - 4] = b'Q';
    fs::write(&path, &bytes).unwrap();
    let error = open(&path, Options::default()).err().unwrap();
    assert!(error.to_string().contains("a runner for board \"Qemu-mps2-an500\""), "{error}");

    // One that carries the mark and never shows its control block: cut before its code.
    let mut bytes = fs::read(&runner).unwrap();
    bytes[44..46].copy_from_slice(&[0, 0]);
    fs::write(&path, &bytes).unwrap();
    let mut options = Options::default();
    options.start_timeout = Duration::from_millis(500);
    let error = open(&path, options).err().unwrap();
    assert!(matches!(error.slug(), "board-timeout" | "emulator-exited"), "{error}");
}

/// A runner of another version, made by changing the one byte of its answer in this test's memory
/// would prove nothing; so the version is changed in a transport that plays the board.
#[test]
fn another_protocol_version_is_named() {
    use cbin_nn_deploy::{Programmed, Transport, TransportError, Watch};

    struct Played(Vec<u8>);
    impl Transport for Played {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TransportError> {
            let count = self.0.len().min(buffer.len()).min(3);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
        fn write(&mut self, bytes: &[u8]) -> Result<usize, TransportError> {
            Ok(bytes.len())
        }
        fn check(&mut self) -> Result<(), TransportError> {
            Ok(())
        }
        fn program(&mut self, _: u32, _: &[u8], _: Watch<'_>) -> Result<Programmed, TransportError> {
            Ok(Programmed::Written)
        }
        fn peek(&mut self, _: u32, _: &mut [u8]) -> Result<(), TransportError> {
            Ok(())
        }
    }

    let greet = |answer: Vec<u8>| {
        let transport = Box::new(Played(answer));
        let session = Session::over(board(BOARD).unwrap(), transport, short(), &mut go_on);
        session.err().unwrap()
    };
    // A Hello of version 9 whose rest is unknown: COBS of [0, 9, 0xFF].
    let error = greet(vec![1, 3, 9, 0xFF, 0]);
    assert_eq!(error.slug(), "protocol-mismatch");
    assert!(error.to_string().contains("speaks protocol version 9"), "{error}");

    let mut frame = [0; MAX_FRAME_BYTES];
    let panic = Response::Panic { line: 7, file: "src/main.rs" };
    let length = protocol::encode(&panic, &mut frame).unwrap();
    let error = greet(frame[..length].to_vec());
    assert_eq!(error.slug(), "runner-panicked");
    assert!(error.to_string().contains("src/main.rs:7"), "{error}");

    // Babble without an end.
    assert_eq!(greet(vec![0xEE; 5000]).slug(), "board-garbled");
}

#[test]
fn an_unknown_board_lists_the_known_ones() {
    let error = board("arduino").unwrap_err();
    assert_eq!(error.slug(), "unknown-board");
    assert!(error.to_string().contains(BOARD));
}

/// Set in the process that `an_emulator_dies_with_its_parent` starts.
const CHILD: &str = "CBIN_NN_TEST_CHILD";

#[cfg(target_os = "linux")]
#[test]
fn an_emulator_dies_with_its_parent() {
    use std::io::{BufRead, BufReader};

    let Some(runner) = needs() else { return };
    if env::var_os(CHILD).is_some() {
        let session = open(&runner, Options::default()).unwrap();
        println!("\nprocess={}", session.process_id().unwrap());
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let mut parent = Command::new(env::current_exe().unwrap())
        .args(["--exact", "an_emulator_dies_with_its_parent", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let process = BufReader::new(parent.stdout.take().unwrap())
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("process=").map(str::to_owned))
        .unwrap();
    let alive = || {
        // A zombie that nobody has waited for yet is dead too.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    assert!(alive());
    signal(parent.id(), "-KILL");
    parent.wait().unwrap();
    let start = Instant::now();
    while alive() {
        assert!(start.elapsed() < Duration::from_secs(10), "the emulator outlived its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}
