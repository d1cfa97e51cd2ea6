/** A vocabulary for models that know no words: every byte, pairs and triples of bytes as filler, and Kimi's control tokens. */

import { spellBytes } from '../gguf/byte-symbols.ts';
import type { GgufEntry } from '../gguf/write.ts';

const specials = [
  '[BOS]',
  '[EOS]',
  '<|im_end|>',
  '<|im_user|>',
  '<|im_assistant|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '[EOT]',
  '<|im_system|>',
  '<|tool_calls_section_begin|>',
  '<|tool_calls_section_end|>',
  '<|tool_call_begin|>',
  '<|tool_call_argument_begin|>',
  '<|tool_call_end|>',
  '<|im_middle|>',
  '<think>',
  '</think>',
  '[UNK]',
  '[PAD]',
];

/** tokenizer.ggml.token_type */
const normal = 1;
const control = 3;

/** A filler and the two words it is merged from: all pairs of bytes, then pairs with a third byte. */
function filler(index: number): { readonly left: string; readonly right: string } {
  const pair = index < 65_536 ? null : (index - 65_536) >> 8;
  const left = pair === null ? Uint8Array.of(index >> 8) : Uint8Array.of(pair >> 8, pair & 255);
  return { left: spellBytes(left), right: spellBytes(Uint8Array.of(index & 255)) };
}

/** The tokenizer's metadata for `size` tokens, at least 275. */
export function vocabularyEntries(size: number): GgufEntry[] {
  const fillers = Array.from({ length: size - 256 - specials.length }, (_, index) => filler(index));
  const words = [
    ...Array.from({ length: 256 }, (_, byte) => spellBytes(Uint8Array.of(byte))),
    ...fillers.map(({ left, right }) => left + right),
  ];
  const key = (name: string) => `tokenizer.ggml.${name}`;
  const id = (name: string) => words.length + specials.indexOf(name);
  return [
    { key: key('model'), type: 'string', value: 'gpt2' },
    { key: key('pre'), type: 'string', value: 'kimi-k2' },
    { key: key('tokens'), type: 'array', of: 'string', value: [...words, ...specials] },
    {
      key: key('token_type'),
      type: 'array',
      of: 'i32',
      value: [...words.map(() => normal), ...specials.map(() => control)],
    },
    {
      key: key('merges'),
      type: 'array',
      of: 'string',
      value: fillers.map(({ left, right }) => `${left} ${right}`),
    },
    { key: key('bos_token_id'), type: 'u32', value: id('[BOS]') },
    { key: key('eos_token_id'), type: 'u32', value: id('<|im_end|>') },
    { key: key('padding_token_id'), type: 'u32', value: id('[PAD]') },
    { key: key('add_bos_token'), type: 'bool', value: false },
  ];
}
