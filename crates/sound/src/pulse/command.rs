//! The numbers of commands, errors and events.

macro_rules! numbers {
    ($kind:ty: $($name:ident = $value:expr),+ $(,)?) => { $(pub const $name: $kind = $value;)+ };
}

/// Commands, in both directions.
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod op {
    numbers! { u32:
        ERROR = 0, REPLY = 2, CREATE_PLAYBACK_STREAM = 3, DELETE_PLAYBACK_STREAM = 4, CREATE_RECORD_STREAM = 5,
        DELETE_RECORD_STREAM = 6, EXIT = 7, AUTH = 8, SET_CLIENT_NAME = 9, LOOKUP_SINK = 10, LOOKUP_SOURCE = 11,
        DRAIN_PLAYBACK_STREAM = 12, STAT = 13, GET_PLAYBACK_LATENCY = 14, CREATE_UPLOAD_STREAM = 15,
        DELETE_UPLOAD_STREAM = 16, FINISH_UPLOAD_STREAM = 17, PLAY_SAMPLE = 18, REMOVE_SAMPLE = 19,
        GET_SERVER_INFO = 20, GET_SINK_INFO = 21, GET_SINK_INFO_LIST = 22, GET_SOURCE_INFO = 23,
        GET_SOURCE_INFO_LIST = 24, GET_MODULE_INFO = 25, GET_MODULE_INFO_LIST = 26, GET_CLIENT_INFO = 27,
        GET_CLIENT_INFO_LIST = 28, GET_SINK_INPUT_INFO = 29, GET_SINK_INPUT_INFO_LIST = 30,
        GET_SOURCE_OUTPUT_INFO = 31, GET_SOURCE_OUTPUT_INFO_LIST = 32, GET_SAMPLE_INFO = 33,
        GET_SAMPLE_INFO_LIST = 34, SUBSCRIBE = 35, SET_SINK_VOLUME = 36, SET_SINK_INPUT_VOLUME = 37,
        SET_SOURCE_VOLUME = 38, SET_SINK_MUTE = 39, SET_SOURCE_MUTE = 40, CORK_PLAYBACK_STREAM = 41,
        FLUSH_PLAYBACK_STREAM = 42, TRIGGER_PLAYBACK_STREAM = 43, SET_DEFAULT_SINK = 44, SET_DEFAULT_SOURCE = 45,
        SET_PLAYBACK_STREAM_NAME = 46, SET_RECORD_STREAM_NAME = 47, KILL_CLIENT = 48, KILL_SINK_INPUT = 49,
        KILL_SOURCE_OUTPUT = 50, LOAD_MODULE = 51, UNLOAD_MODULE = 52, GET_RECORD_LATENCY = 57,
        CORK_RECORD_STREAM = 58, FLUSH_RECORD_STREAM = 59, PREBUF_PLAYBACK_STREAM = 60, REQUEST = 61, OVERFLOW = 62,
        UNDERFLOW = 63, PLAYBACK_STREAM_KILLED = 64, RECORD_STREAM_KILLED = 65, SUBSCRIBE_EVENT = 66,
        MOVE_SINK_INPUT = 67, MOVE_SOURCE_OUTPUT = 68, SET_SINK_INPUT_MUTE = 69, SUSPEND_SINK = 70,
        SUSPEND_SOURCE = 71, SET_PLAYBACK_STREAM_BUFFER_ATTR = 72, SET_RECORD_STREAM_BUFFER_ATTR = 73,
        UPDATE_PLAYBACK_STREAM_SAMPLE_RATE = 74, UPDATE_RECORD_STREAM_SAMPLE_RATE = 75,
        PLAYBACK_STREAM_MOVED = 78, RECORD_STREAM_MOVED = 79, UPDATE_RECORD_STREAM_PROPLIST = 80,
        UPDATE_PLAYBACK_STREAM_PROPLIST = 81, UPDATE_CLIENT_PROPLIST = 82, REMOVE_RECORD_STREAM_PROPLIST = 83,
        REMOVE_PLAYBACK_STREAM_PROPLIST = 84, REMOVE_CLIENT_PROPLIST = 85, STARTED = 86, EXTENSION = 87,
        GET_CARD_INFO = 88, GET_CARD_INFO_LIST = 89, SET_CARD_PROFILE = 90, SET_SINK_PORT = 96, SET_SOURCE_PORT = 97,
        SET_SOURCE_OUTPUT_VOLUME = 98, SET_SOURCE_OUTPUT_MUTE = 99, SET_PORT_LATENCY_OFFSET = 100,
        SEND_OBJECT_MESSAGE = 104,
    }
}

/// Errors.
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod code {
    numbers! { u32:
        ACCESS = 1, COMMAND = 2, INVALID = 3, EXIST = 4, NOENTITY = 5, PROTOCOL = 7, KILLED = 12, MODINITFAILED = 14,
        BADSTATE = 15, VERSION = 17, TOOLARGE = 18, NOTSUPPORTED = 19, NOEXTENSION = 21, NOTIMPLEMENTED = 23,
    }
}

/// What an event is about; a client subscribes to bit `1 << facility`.
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod facility {
    numbers! { u32:
        SINK = 0, SOURCE = 1, SINK_INPUT = 2, SOURCE_OUTPUT = 3, MODULE = 4, CLIENT = 5, SAMPLE_CACHE = 6, SERVER = 7,
    }
}

/// What happened to it.
#[allow(missing_docs, reason = "the names are the protocol's own")]
pub mod event {
    numbers! { u32: NEW = 0, CHANGE = 0x10, REMOVE = 0x20 }
}

/// The volume at which samples stay what they are.
pub const VOLUME_NORMAL: u32 = 0x1_0000;
/// The highest volume.
pub const VOLUME_MAX: u32 = u32::MAX / 2;

/// How much a volume amplifies: PulseAudio's scale is cubic.
pub fn gain(volume: u32) -> f64 {
    let linear = f64::from(volume) / f64::from(VOLUME_NORMAL);
    linear * linear * linear
}
