//! Reductions over rows, and the choice of tokens.

use super::case::Operation;
use super::row::{ANY, Row, row, subgroups};
use crate::classes::{CHOOSE_8, CHOOSE_256, ROW_8, ROW_128, ROWS_32};
use crate::storage::Storage;

pub(super) static ROWS: &[Row] = &[
    subgroups(
        Operation::Rows,
        "",
        &ROW_8,
        |c, _| c.storage == Storage::F32x4,
        |c, d| d.cpu && !c.ragged(),
        "a CPU adapter: a row is one vector, and shuffles suspend nothing",
    ),
    row(
        Operation::Rows,
        "",
        &ROW_8,
        |c, _| Storage::WIDE.contains(&c.storage),
        |_, d| d.cpu,
        "a CPU adapter: a row is one vector, and barriers of one vector suspend nothing",
    ),
    subgroups(
        Operation::Rows,
        "",
        &ROW_128,
        |c, _| c.storage.in_fours(),
        |c, _| c.columns > 1024 && !c.ragged(),
        "long rows: 4096 columns in registers, and few barriers",
    ),
    row(
        Operation::Rows,
        "",
        &ROW_128,
        |c, _| c.storage.in_fours(),
        |c, _| c.columns > 1024 && !c.ragged(),
        "long rows: 4096 columns in registers",
    ),
    subgroups(
        Operation::Rows,
        "",
        &ROWS_32,
        |c, _| c.storage.in_fours(),
        |c, _| !c.ragged(),
        "short rows: one subgroup each on most GPUs, and no barrier",
    ),
    row(
        Operation::Rows,
        "",
        &ROWS_32,
        ANY,
        ANY,
        "short rows in registers; rows that a batch makes longer, and unaligned ones of any length",
    ),
    row(
        Operation::Choose,
        "",
        &CHOOSE_8,
        ANY,
        |_, d| d.cpu,
        "a CPU adapter: a row is one vector, and barriers of one vector suspend nothing",
    ),
    row(
        Operation::Choose,
        "",
        &CHOOSE_256,
        ANY,
        ANY,
        "one workgroup a row, as a row's passes follow each other: as many threads as any device has",
    ),
];
