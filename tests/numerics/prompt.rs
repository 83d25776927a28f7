//! Prompts as tokens: equal to what upstream's `vision_chat.py` and
//! `vision_generation.py` fed to their models, ids and masks, padding included.

use expect_test::{Expect, expect};
use longreel_models::{
    context::{
        prompt::{
            ChatPrompt, FrameTerminators, GENERATION_PROMPT_LENGTH, GeneratedMedium,
            GenerationPrompt, PaddedRows, check_length, describe, follow_up, frame_tokens,
            left_pad, max_input_length, raw_prompt, text_prompt,
        },
        tokenizer::{Tokenizer, TokenizerConfig},
        vocab::Token,
    },
    error::Kind,
    spec::FrameEnd,
};
use serde_json::Value;

use crate::support::golden::{self, Golden};

const CODES_PER_FRAME: usize = 256;
const TOKENS_PER_FRAME: usize = CODES_PER_FRAME + 1;
/// `block_size` of the golden runs.
const BLOCK: usize = 32;

fn lwm() -> Tokenizer {
    Tokenizer::open(&golden::path("tokenizer")).unwrap()
}

fn expected() -> Golden {
    Golden::open("e2e/expected.safetensors")
}

fn unsigned(values: Vec<i32>) -> Vec<u32> {
    values
        .into_iter()
        .map(|v| u32::try_from(v).unwrap())
        .collect()
}

/// The codes of every frame in a golden row: its vision ids without the terminators.
fn frames_of(ids: &[u32], vision_mask: &[u8]) -> Vec<Vec<u32>> {
    let vision: Vec<u32> = ids
        .iter()
        .zip(vision_mask)
        .filter(|(_, m)| **m == 1)
        .map(|(id, _)| *id)
        .collect();
    vision
        .chunks(TOKENS_PER_FRAME)
        .map(|frame| frame[..CODES_PER_FRAME].to_vec())
        .collect()
}

fn video_tokens(frames: &[Vec<u32>], end: FrameEnd) -> Vec<Token> {
    let n = frames.len();
    let terminators = FrameTerminators {
        end,
        end_of_frame_id: 8192,
        end_of_vision_id: 8193,
    };
    frames
        .iter()
        .enumerate()
        .flat_map(|(i, f)| frame_tokens(f, i + 1 == n, terminators))
        .collect()
}

/// Asserts that `rows` are the golden rows named `tag`.
fn assert_rows(tag: &str, rows: &PaddedRows, golden: &Golden, vision_mask: &[u8]) {
    let flags = |values: Vec<i32>| values.into_iter().map(|v| v == 1).collect::<Vec<bool>>();
    assert_eq!(
        rows.ids,
        unsigned(golden.i32(&format!("{tag}.input_ids"))),
        "{tag}: ids"
    );
    assert_eq!(
        rows.attention_mask,
        flags(golden.i32(&format!("{tag}.attention_mask"))),
        "{tag}: attention mask"
    );
    assert_eq!(
        rows.vision_mask,
        vision_mask.iter().map(|&m| m == 1).collect::<Vec<_>>(),
        "{tag}: vision mask"
    );
}

/// Rebuilds the padded rows of one golden chat from its questions and the codes found in it.
fn check_chat(case: &Value) {
    let tag = case["tag"].as_str().unwrap();
    let end = if tag == "video_train_eof" {
        FrameEnd::Training
    } else {
        FrameEnd::Upstream
    };
    let golden = expected();
    let ids = unsigned(golden.i32(&format!("{tag}.input_ids")));
    let mask = golden.u8(&format!("{tag}.vision_masks"));
    let length = max_input_length(
        case["max_n_frames"].as_u64().unwrap() as usize,
        TOKENS_PER_FRAME,
        BLOCK,
    );
    assert_eq!(
        length,
        golden.shape(&format!("{tag}.input_ids"))[1],
        "{tag}: length"
    );

    let tokenizer = lwm();
    let mut rows = Vec::new();
    for (i, prompt) in case["prompts"].as_array().unwrap().iter().enumerate() {
        let row = i * length..(i + 1) * length;
        let frames = frames_of(&ids[row.clone()], &mask[row]);
        let chat = ChatPrompt::new(&tokenizer, prompt["question"].as_str().unwrap()).unwrap();
        let tokens = chat.assemble(&[video_tokens(&frames, end)]);
        assert_eq!(
            tokens.len() as u64,
            case["n_prompt_tokens"][i].as_u64().unwrap(),
            "{tag}: tokens of row {i}"
        );
        assert_eq!(
            tokens.len(),
            chat.n_text_tokens(1) + frames.len() * TOKENS_PER_FRAME
        );
        check_length(tokens.len(), length).unwrap();
        rows.push(tokens);
    }
    assert_rows(tag, &left_pad(&rows, length, 0), &golden, &mask);
}

#[test]
fn chat_prompts_are_those_of_vision_chat() {
    let cases: Value =
        serde_json::from_slice(&std::fs::read(golden::path("e2e/cases.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 4);
    cases.iter().for_each(check_chat);
}

#[test]
fn pieces_of_the_chat_template_are_those_of_the_tokenizer_cases() {
    let cases: Value =
        serde_json::from_slice(&std::fs::read(golden::path("tokenizer/cases.json")).unwrap())
            .unwrap();
    let pieces = &cases["chat_template_pieces"];
    let text = |keys: [&str; 2]| -> Vec<Token> {
        let ids = keys.iter().flat_map(|key| pieces[*key].as_array().unwrap());
        ids.map(|id| Token::Text(id.as_u64().unwrap() as u32))
            .collect()
    };
    let prompt = ChatPrompt::new(&lwm(), pieces["question"].as_str().unwrap()).unwrap();
    assert_eq!(prompt.head, text(["text_1", "vision_start"]));
    assert_eq!(prompt.between, text(["vision_end", "vision_start"]));
    assert_eq!(prompt.tail, text(["vision_end", "tail"]));
}

#[test]
fn a_configuration_that_adds_bos_does_not_double_the_one_spelled_out() {
    let model = std::fs::read(golden::path("tokenizer/tokenizer.model")).unwrap();
    let config = TokenizerConfig::from_json(r#"{"add_bos_token": true}"#).unwrap();
    let adds_bos = Tokenizer::from_sentencepiece(&model, &config).unwrap();
    assert_eq!(
        ChatPrompt::new(&adds_bos, "Who?").unwrap(),
        ChatPrompt::new(&lwm(), "Who?").unwrap()
    );
    assert_eq!(
        text_prompt(&adds_bos, "Who?").unwrap().head[0],
        Token::Text(1),
        "a plain text prompt follows the configuration"
    );
}

#[test]
fn prompts_for_an_image_are_those_of_vision_generation() {
    let prompt = GenerationPrompt::new(&lwm(), GeneratedMedium::Image, "a red car").unwrap();
    let rows = left_pad(
        &[prompt.conditional, prompt.unconditional],
        GENERATION_PROMPT_LENGTH,
        0,
    );
    assert_rows(
        "gen_image",
        &rows,
        &expected(),
        &[0; 2 * GENERATION_PROMPT_LENGTH],
    );
}

#[test]
fn prompts_for_a_video_are_followed_by_the_first_frame() {
    let golden = expected();
    let prompt = GenerationPrompt::new(&lwm(), GeneratedMedium::Video, "a red car").unwrap();
    let ids = unsigned(golden.i32("gen_video.input_ids"));
    let mask = golden.u8("gen_video.vision_masks");
    let length = GENERATION_PROMPT_LENGTH + TOKENS_PER_FRAME;
    let rows: Vec<Vec<Token>> = [prompt.conditional, prompt.unconditional]
        .into_iter()
        .zip(ids.chunks(length))
        .map(|(text, row)| {
            text.into_iter()
                .chain(
                    row[GENERATION_PROMPT_LENGTH..]
                        .iter()
                        .map(|&id| Token::Vision(id)),
                )
                .collect()
        })
        .collect();
    let rows = left_pad(&rows, length, 0);
    assert_rows("gen_video", &rows, &golden, &mask);
}

#[test]
fn a_longer_row_loses_its_beginning() {
    let rows = left_pad(
        &[
            vec![Token::Text(1), Token::Text(2), Token::Vision(3)],
            vec![Token::Text(4)],
        ],
        2,
        0,
    );
    assert_eq!(rows.ids, [2, 3, 0, 4]);
    assert_eq!(rows.vision_mask, [false, true, false, false]);
    assert_eq!(rows.attention_mask, [true, true, false, true]);
}

#[test]
fn a_prompt_must_be_strictly_shorter_than_the_longest_input() {
    check_length(1311, 1312).unwrap();
    for (n_tokens, expected) in [
        (
            1312,
            "the prompt has 1312 tokens, expected fewer than 1312: 1 too many",
        ),
        (
            2000,
            "the prompt has 2000 tokens, expected fewer than 1312: 689 too many",
        ),
    ] {
        let error = check_length(n_tokens, 1312).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::TooLarge, expected)
        );
    }
    assert_eq!(
        max_input_length(usize::MAX, TOKENS_PER_FRAME, 1),
        usize::MAX
    );
}

#[test]
fn training_ends_all_frames_but_the_last_with_end_of_frame() {
    let ends = |end| {
        video_tokens(&[vec![7], vec![8]], end)
            .into_iter()
            .map(Token::id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(FrameEnd::Upstream), [7, 8193, 8, 8193]);
    assert_eq!(ends(FrameEnd::Training), [7, 8192, 8, 8193]);
}

fn check(tokens: &[Token], expected: Expect) {
    expected.assert_eq(&describe(&lwm(), tokens));
}

#[test]
fn every_video_stands_between_its_own_tags() {
    let frames = |first: u32| {
        video_tokens(
            &[(first..first + 256).collect(), vec![5; 256]],
            FrameEnd::Training,
        )
    };
    let prompt = ChatPrompt::new(&lwm(), "Which is the street?").unwrap();
    let tokens = prompt.assemble(&[frames(0), frames(1000)]);
    assert_eq!(tokens.len(), prompt.n_text_tokens(2) + 4 * TOKENS_PER_FRAME);
    check(
        &tokens,
        expect![[r#"
        text 46: <s> ▁ Y ou ▁a re ▁a ▁ he l p f u l ▁a s s is t a nt . ▁ U S E R : ▁ W h i c h ▁is ▁the ▁s t re e t ? <0x0A> ▁< vision >
        vision 514: 0 1 2 … 5 8193
        text 7: ▁< / vision > ▁< vision >
        vision 514: 1000 1001 1002 … 5 8193
        text 16: ▁< / vision > ▁ ▁ A S S I S T A N T :
    "#]],
    );
}

#[test]
fn text_prompts() {
    let tokenizer = lwm();
    check(
        &text_prompt(&tokenizer, "Who walks?").unwrap().assemble(&[]),
        expect![[r#"
            text 48: ▁ Y ou ▁a re ▁a ▁ he l p f u l ▁a s s is t a nt . ▁ U S E R : ▁ W h o ▁ w al k s ? ▁ A S S I S T A N T :
        "#]],
    );
    check(
        &follow_up(&tokenizer, None, "Who else?").unwrap(),
        expect![[r#"
            text 29: </s> ▁ ▁ U S E R : ▁ W h o ▁ e l s e ? ▁ A S S I S T A N T :
        "#]],
    );
    check(
        &raw_prompt(&tokenizer, "The video").unwrap().assemble(&[]),
        expect![[r#"
            text 7: ▁ T he ▁ v ide o
        "#]],
    );
}

#[test]
fn an_answer_that_ended_itself_is_not_closed_again() {
    let tokenizer = lwm();
    let cut_short = follow_up(&tokenizer, Some(Token::Text(259)), "Who?").unwrap();
    let ended = follow_up(&tokenizer, Some(Token::Text(2)), "Who?").unwrap();
    assert_eq!(cut_short, [vec![Token::Text(2)], ended].concat());
}
