use containarium::backup::Form;
use containarium::backup::paper::{PaperError, write};
use proptest::prelude::*;

use super::*;

const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn key() -> Vec<u8> {
    (0_u8..32).map(|at| at.wrapping_mul(73).wrapping_add(5)).collect()
}

fn sheet() -> String {
    write(&image(&key()), kid_of(&key())).to_string()
}

fn paper_error(text: &str) -> PaperError {
    match refusal(text.as_bytes()) {
        BackupError::Paper(error) => error,
        other => panic!("{other}"),
    }
}

/// The row that an error names.
fn row_of(error: &PaperError) -> Option<usize> {
    match error {
        PaperError::NotALine { row }
        | PaperError::Check { row, .. }
        | PaperError::Character { row, .. }
        | PaperError::Twice { row, .. }
        | PaperError::TooMany { row, .. } => Some(*row),
        _ => None,
    }
}

fn with_row(sheet: &str, row: usize, text: &str) -> String {
    let rows: Vec<&str> = sheet.lines().enumerate().map(|(at, line)| if at + 1 == row { text } else { line }).collect();
    rows.join("\n")
}

/// The format is for decades: these bytes must be read for as long as there is paper.
#[test]
fn the_sheet_is_as_it_was_first_printed() {
    let printed = include_str!("paper.txt");
    assert_eq!(sheet(), printed);
    let read_back = read(printed.as_bytes()).unwrap();
    assert_eq!(bytes(read_back.copy.image()), key());
    assert_eq!((read_back.form, read_back.copy.kid()), (Form::Paper, Ok(kid_of(&key()))));
}

proptest! {
    #[test]
    fn any_key_file_comes_back_from_paper(content in proptest::collection::vec(any::<u8>(), 1..2000)) {
        let kid = Kid::new([0xAB; 16]);
        prop_assume!(content.len() != 32);
        let read_back = read(write(&image(&content), kid).as_bytes()).unwrap();
        prop_assert_eq!(bytes(read_back.copy.image()), content);
    }
}

#[test]
fn a_wrapped_key_file_and_the_longest_one_come_back_from_paper() {
    for content in [WRAPPED.to_vec(), vec![0xFB; KeyfileImage::MAX_LEN]] {
        let sheet = write(&image(&content), Kid::new([1; 16]));
        assert_eq!(bytes(read(sheet.as_bytes()).unwrap().copy.image()), content);
    }
}

/// Every place of every row, with every other character of the alphabet.
#[test]
fn every_mistyped_character_is_named_by_its_row() {
    let sheet = sheet();
    let mut tried = 0;
    for (at, line) in sheet.lines().enumerate().filter(|(_, line)| line.contains('#')) {
        let body = line.find(':').unwrap() + 1..line.len();
        for place in body {
            let right = line.as_bytes()[place];
            if right == b' ' || right == b'#' {
                continue;
            }
            let in_base64 = line.starts_with(|c: char| c.is_ascii_digit()) && place < line.find('#').unwrap();
            for wrong in BASE64.bytes().chain(*b"=-_.!").filter(|wrong| *wrong != right) {
                // The same digit: forgiven, and tested below.
                let means = |byte: u8| match byte.to_ascii_lowercase() {
                    b'o' => b'0',
                    b'l' | b'i' => b'1',
                    byte => byte,
                };
                if !in_base64 && means(wrong) == means(right) {
                    continue;
                }
                let mut typed = line.as_bytes().to_vec();
                typed[place] = wrong;
                let error = paper_error(&with_row(&sheet, at + 1, std::str::from_utf8(&typed).unwrap()));
                assert_eq!(row_of(&error), Some(at + 1), "{line} with {:?} at {place}: {error}", char::from(wrong));
                tried += 1;
            }
        }
    }
    assert!(tried > 7_500, "only {tried}");
}

#[test]
fn every_swapped_pair_and_every_lost_or_doubled_character_is_named_by_its_row() {
    let sheet = sheet();
    for (at, line) in sheet.lines().enumerate().filter(|(_, line)| line.contains('#')) {
        let characters: Vec<char> = line.chars().collect();
        let start = line.find(':').unwrap() + 1;
        let places = (start..characters.len()).filter(|place| !" #".contains(characters[*place]));
        for place in places {
            let mut lost = characters.clone();
            lost.remove(place);
            let mut doubled = characters.clone();
            doubled.insert(place, characters[place]);
            let next = (place + 1..characters.len()).find(|next| !" #".contains(characters[*next]));
            let mut swapped = characters.clone();
            if let Some(next) = next.filter(|next| characters[*next] != characters[place]) {
                swapped.swap(place, next);
            }
            for typed in [lost, doubled, swapped].iter().filter(|typed| **typed != characters) {
                let typed: String = typed.iter().collect();
                let error = paper_error(&with_row(&sheet, at + 1, &typed));
                assert_eq!(row_of(&error), Some(at + 1), "{typed}: {error}");
            }
        }
    }
}

#[test]
fn what_can_mean_one_thing_only_is_forgiven() {
    let sheet = sheet();
    let loud = |line: &str| match line.split_once(':') {
        Some((label, body)) if label.parse::<u8>().is_ok() => {
            let (data, check) = body.split_once('#').unwrap();
            format!("0{label} :{data}#{}", check.to_uppercase())
        }
        _ => line.to_uppercase(),
    };
    let squeezed = |line: &str| if line.starts_with('-') { line.to_owned() } else { line.replace(' ', "") };
    let spread = |line: &str| {
        let apart: String = line.chars().flat_map(|c| [c, '\u{a0}', '\t']).collect();
        if line.starts_with('-') { line.to_owned() } else { format!("  {apart}\r") }
    };
    let misread = |line: &str| {
        let (data, check) = line.rsplit_once('#').unwrap_or((line, ""));
        if check.is_empty() { line.to_owned() } else { format!("{data}#{}", check.replace('0', "O").replace('1', "l")) }
    };
    let shuffled = |sheet: &str| {
        let mut lines: Vec<&str> = sheet.lines().skip(1).collect();
        lines.reverse();
        format!("{}\n{}", sheet.lines().next().unwrap(), lines.join("\n"))
    };
    let each = |change: &dyn Fn(&str) -> String| sheet.lines().map(change).collect::<Vec<_>>().join("\n\n");
    for typed in [each(&loud), each(&squeezed), each(&spread), each(&misread), shuffled(&sheet)] {
        let read_back = read(typed.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{typed}"));
        assert_eq!(bytes(read_back.copy.image()), key());
    }
}

#[test]
fn a_line_that_is_missing_there_twice_or_one_too_many_is_named() {
    let sheet = sheet();
    let rows: Vec<&str> = sheet.lines().collect();
    for (missing, name) in [("kid", "kid"), ("bytes", "bytes"), ("1:", "line 1"), ("2:", "line 2"), ("3:", "line 3")] {
        let without: Vec<&str> = rows.iter().copied().filter(|row| !row.starts_with(missing)).collect();
        assert_eq!(paper_error(&without.join("\n")), PaperError::Missing { line: name.to_owned() });
    }
    let second = rows.iter().find(|row| row.starts_with("2:")).unwrap();
    let twice = paper_error(&format!("{sheet}{second}\n"));
    assert_eq!(twice, PaperError::Twice { row: rows.len() + 1, line: "line 2".to_owned() });
    let extra = paper_error(&format!("{sheet}4{}\n", &second[1..]));
    assert_eq!(extra, PaperError::TooMany { row: rows.len() + 1, line: 4 });
    let renumbered = paper_error(&sheet.replace("\n3:", "\n4:"));
    assert_eq!(renumbered, PaperError::Missing { line: "line 3".to_owned() });
    for cut in (0..sheet.len() - 1).filter(|cut| sheet.is_char_boundary(*cut)) {
        let cut = read(&sheet.as_bytes()[..cut]);
        assert!(cut.is_err() || cut.is_ok_and(|read| read.form == Form::Plain), "a sheet cut short");
    }
}

#[test]
fn lines_of_two_sheets_are_not_mixed() {
    let (other, kid) = new_key();
    let other = write(&image(&other), kid).to_string();
    let line = |sheet: &str| sheet.lines().find(|line| line.starts_with("2:")).unwrap().to_owned();
    let error = paper_error(&sheet().replace(&line(&sheet()), &line(&other)));
    assert!(matches!(error, PaperError::Check { .. }), "{error}");
}

#[test]
fn two_lines_that_changed_their_numbers_are_named() {
    let swapped = sheet().replace("\n1:", "\n9:").replace("\n2:", "\n1:").replace("\n9:", "\n2:");
    assert_eq!(paper_error(&swapped), PaperError::Check { row: 7, line: "line 1".to_owned() });
}

#[test]
fn a_sheet_that_says_another_key_is_refused() {
    let written = Kid::new([9; 16]);
    let error = paper_error(&write(&image(&key()), written));
    assert_eq!(error, PaperError::OtherKey { written, found: kid_of(&key()) });
}

#[test]
fn another_version_and_other_text_are_told() {
    assert_eq!(paper_error(&sheet().replacen("PAPER 1", "PAPER 2", 1)), PaperError::OtherVersion);
    let mut latin1 = sheet().into_bytes();
    latin1.extend_from_slice(b"\xe4\n");
    assert!(matches!(refusal(&latin1), BackupError::Paper(PaperError::NotText)));
    assert_eq!(paper_error(&format!("{}hello\n", sheet())), PaperError::NotALine { row: 9 });
}

#[test]
fn a_sheet_as_windows_editors_save_it_is_read_or_told_what_to_save_it_as() {
    let marked = format!("\u{feff}{}", sheet().replace('\n', "\r\n"));
    let read = read_copy(&mut marked.as_bytes(), None).unwrap();
    assert_eq!(read.copy.kid().unwrap(), kid_of(&key()));
    let utf_16: Vec<u8> = [0xfeff].into_iter().chain(sheet().encode_utf16()).flat_map(u16::to_le_bytes).collect();
    assert!(matches!(refusal(&utf_16), BackupError::Paper(PaperError::NotText)));
}

#[test]
fn a_sheet_without_its_first_line_is_no_key_that_is_worth_nothing() {
    let sheet = sheet();
    let (_, rest) = sheet.split_once('\n').unwrap();
    assert_eq!(paper_error(rest), PaperError::NoTitle);
}

#[test]
fn no_error_repeats_what_was_typed() {
    let sheet = sheet();
    let line = sheet.lines().find(|line| line.starts_with("2:")).unwrap();
    let typed = line.replacen(' ', " X", 1);
    let error = paper_error(&sheet.replace(line, &typed));
    for group in line.split(' ').filter(|group| group.len() == 4) {
        assert!(!format!("{error} {error:?}").contains(group), "{error}");
    }
}
