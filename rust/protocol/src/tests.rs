//! Round trips of every message, the bound on frames, and hostile bytes.

extern crate std;

use proptest::prelude::*;
use std::vec::Vec;

use super::*;

/// Encodes a message, checks the frame's shape, decodes it and compares.
macro_rules! round_trip {
    ($kind:ident, $message:expr) => {{
        let message: $kind<'_> = $message;
        let mut frame = [0xAA; MAX_FRAME_BYTES];
        let length = encode(&message, &mut frame).unwrap();
        assert_eq!(frame[length - 1], 0);
        assert!(frame[..length - 1].iter().all(|&byte| byte != 0));
        let bytes = unframe(&mut frame[..length]).unwrap();
        assert_eq!(decode::<$kind<'_>>(bytes), Ok(message));
    }};
}

const HELLO: Hello<'static> = Hello {
    version: VERSION,
    runner_version: "0.1.0",
    board: "qemu-mps2-an500",
    counter: Counter::Instructions,
    counter_resolution: 40,
    model_address: 0x6010_0000,
    model_bytes: 15 << 20,
    workspace_bytes: 1 << 20,
    stack_bytes: 32 << 10,
    ram_transport_bytes: 4200,
    ram_other_bytes: 8,
    code_bytes: 20_000,
};

#[test]
fn every_request_survives_the_wire() {
    for value in [0, 1, 127, 128, 254, 255, 256, u32::MAX] {
        round_trip!(Request, Request::OpenModel { bytes: value });
        round_trip!(Request, Request::ReadOutput { offset: value, bytes: !value });
        round_trip!(Request, Request::ReadCounts { first: value });
        round_trip!(Request, Request::Spin { iterations: value });
    }
    round_trip!(Request, Request::Hello);
    round_trip!(Request, Request::CloseModel);
    round_trip!(Request, Request::Run);
}

#[test]
fn every_response_survives_the_wire() {
    round_trip!(Response, Response::Hello(HELLO));
    for counter in [Counter::Cycles, Counter::Absent] {
        round_trip!(Response, Response::Hello(Hello { counter, ..HELLO }));
    }
    round_trip!(Response, Response::Closed);
    round_trip!(Response, Response::InputWritten);
    for value in [0, 255, 256, u32::MAX] {
        let opened =
            Opened { operators: value, arena_bytes: !value, input_bytes: value / 3, output_bytes: value / 5 };
        round_trip!(Response, Response::Opened(opened));
        let ran = Ran { total: u64::from(value) << 20, stack_bytes: value };
        round_trip!(Response, Response::Ran(ran));
        round_trip!(Response, Response::Spun { count: u64::MAX - u64::from(value) });
        round_trip!(Response, Response::Panic { line: value, file: "src/lib.rs" });
        round_trip!(Response, Response::Fault { pc: value });
        round_trip!(Response, Response::NotReady { what: "the clock" });
        for error in [
            BoardError::FrameTooLong,
            BoardError::BadFrame,
            BoardError::NoModel,
            BoardError::NotRun,
            BoardError::ModelTooLarge { needed: value, available: !value },
            BoardError::BadModel { code: value as u16 },
            BoardError::ArenaTooSmall { needed: value, available: !value },
            BoardError::OutOfOrder { offset: value, expected: !value },
            BoardError::OutOfRange { end: value, limit: !value },
            BoardError::InputIncomplete { written: value, needed: !value },
            BoardError::OperatorNotBuilt { index: value },
            BoardError::RunFailed,
        ] {
            round_trip!(Response, Response::Error(error));
        }
    }
}

/// COBS is longest without a zero in it, varints are longest at their maximum.
#[test]
fn the_longest_messages_fit_a_frame() {
    for fill in [0, 1, 0xFF] {
        let data = [fill; MAX_CHUNK_BYTES];
        round_trip!(Request, Request::WriteInput { offset: u32::MAX, data: &data });
        round_trip!(Response, Response::Output { data: &data });
        round_trip!(Response, Response::Counts { first: u32::MAX, data: &data });
    }
    let file = core::str::from_utf8(&[b'x'; MAX_FILE_BYTES]).unwrap();
    round_trip!(Response, Response::Panic { line: u32::MAX, file });
}

#[test]
fn a_message_that_does_not_fit_is_an_error() {
    let data = [1; MAX_FRAME_BYTES];
    let message = Request::WriteInput { offset: 0, data: &data };
    assert_eq!(encode(&message, &mut [0; MAX_FRAME_BYTES]), Err(FrameError::TooLong));
    assert_eq!(encode(&Request::Run, &mut []), Err(FrameError::TooLong));
}

/// The encoding that no version may change: a host of any age must be able to ask.
#[test]
fn the_greeting_is_frozen() {
    let mut frame = [0; MAX_FRAME_BYTES];
    let length = encode(&Request::Hello, &mut frame).unwrap();
    assert_eq!(frame[..length], [1, 1, 0]);

    let length = encode(&Response::Hello(Hello { version: 777, ..HELLO }), &mut frame).unwrap();
    let bytes = unframe(&mut frame[..length]).unwrap();
    assert_eq!(hello_version(bytes), Some(777));
    // A Hello of another version, whose rest this version can't read.
    assert_eq!(hello_version(&[0, 9, 0xFF]), Some(9));
    assert_eq!(hello_version(&[1, 9]), None);
    assert_eq!(hello_version(&[]), None);
}

#[test]
fn trailing_bytes_are_not_a_message() {
    assert_eq!(decode::<Request<'_>>(&[0]), Ok(Request::Hello));
    assert_eq!(decode::<Request<'_>>(&[0, 0]), Err(FrameError::NotAMessage));
    assert_eq!(decode::<Request<'_>>(&[]), Err(FrameError::NotAMessage));
}

#[test]
fn a_file_name_keeps_its_end_and_its_characters() {
    assert_eq!(file_tail("src/lib.rs"), "src/lib.rs");
    let mut long = "é".repeat(MAX_FILE_BYTES);
    long.push_str("/x");
    let tail = file_tail(&long);
    assert!(tail.ends_with("é/x") && tail.len() <= MAX_FILE_BYTES);
    long.push('y');
    assert!(file_tail(&long).len() < MAX_FILE_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 4096 }))]

    #[test]
    fn hostile_frames_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(bytes) = unframe(&mut bytes) {
            let _ = decode::<Request<'_>>(bytes);
            let _ = decode::<Response<'_>>(bytes);
            let _ = hello_version(bytes);
        }
    }

    #[test]
    fn hostile_messages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode::<Request<'_>>(&bytes);
        let _ = decode::<Response<'_>>(&bytes);
        let _ = hello_version(&bytes);
    }

    #[test]
    fn damaged_frames_never_panic(
        data in prop::collection::vec(any::<u8>(), 0..=MAX_CHUNK_BYTES),
        offset: u32,
        at: prop::sample::Index,
        value: u8,
    ) {
        let mut frame = [0; MAX_FRAME_BYTES];
        let length = encode(&Request::WriteInput { offset, data: &data }, &mut frame).unwrap();
        frame[at.index(length)] = value;
        if let Ok(bytes) = unframe(&mut frame[..length]) {
            let _ = decode::<Request<'_>>(bytes);
        }
    }

    #[test]
    fn any_chunk_survives_the_wire(
        data in prop::collection::vec(any::<u8>(), 0..=MAX_CHUNK_BYTES),
        offset: u32,
    ) {
        let data: Vec<u8> = data;
        round_trip!(Request, Request::WriteInput { offset, data: &data });
        round_trip!(Response, Response::Output { data: &data });
        round_trip!(Response, Response::Counts { first: offset, data: &data });
    }
}
