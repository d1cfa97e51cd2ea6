/** What the chat's tests share: a tokenizer with one token per byte, so that every cut of a text can be tried. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ChatEvent, Tool } from '../../src/chat/types.ts';
import { Utf8StreamDecoder } from '../../src/tokenizer/stream-decoder.ts';
import type { Tokenizer } from '../../src/tokenizer/types.ts';

export const moonlightFolder = join(import.meta.dirname, '..', 'fixtures', 'moonlight');
/** The template all fixtures of ours share; it is written for K2's format. */
export const nanoTemplate: string = JSON.parse(
  readFileSync(join(moonlightFolder, 'tokenizer_config.json'), 'utf8'),
).chat_template;

/** The real vocabulary of Kimi K2, which only some machines have. */
export const kimiFolder = join(import.meta.dirname, '..', '..', '..', 'shared', 'kimi-tokenizer');
export const kimiMissing = !existsSync(join(kimiFolder, 'tiktoken.model'));

export const kimiSpecials = [
  '[BOS]',
  '[EOS]',
  '<|im_end|>',
  '<|im_user|>',
  '<|im_assistant|>',
  '[EOT]',
  '<|im_system|>',
  '<|tool_calls_section_begin|>',
  '<|tool_calls_section_end|>',
  '<|tool_call_begin|>',
  '<|tool_call_argument_begin|>',
  '<|tool_call_end|>',
  '<|im_middle|>',
  '[PAD]',
];
export const thinkingSpecials = [...kimiSpecials, '<think>', '</think>'];

/** Token 0..255 is that byte; the specials follow. */
export function byteTokenizer(options: { specials?: readonly string[]; template?: string | null } = {}): Tokenizer {
  const { specials: names = kimiSpecials, template = null } = options;
  const specials = new Map(names.map((name, i) => [name, 256 + i]));
  const bytesOf = (id: number) => (id < 256 ? Uint8Array.of(id) : new TextEncoder().encode(names[id - 256] ?? ''));
  const pattern = new RegExp(`(${names.map((name) => name.replace(/\W/g, '\\$&')).join('|') || '(?!)'})`);
  return {
    vocabularySize: 256 + names.length,
    specials,
    stopTokens: ['<|im_end|>', '[EOS]', '[EOT]'].flatMap((name) => specials.get(name) ?? []),
    bosToken: specials.get('[BOS]') ?? null,
    eosToken: specials.get('[EOS]') ?? null,
    padToken: specials.get('[PAD]') ?? null,
    chatTemplate: template,
    encode: (text, { specials: read = false } = {}) =>
      (read ? text.split(pattern) : [text]).flatMap((piece) => {
        const id = read ? specials.get(piece) : undefined;
        return id === undefined ? [...new TextEncoder().encode(piece)] : [id];
      }),
    decode: (ids) => Buffer.concat([...ids].map(bytesOf)).toString('utf8'),
    bytes: bytesOf,
    isSpecial: (id) => id >= 256,
    streamDecoder: () => new Utf8StreamDecoder(bytesOf),
  };
}

export function tool(name: string, properties: Record<string, unknown> = {}, required: string[] = []): Tool {
  const parameters = { type: 'object', required, properties };
  return { name, declaration: { type: 'function', function: { name, description: `Does ${name}.`, parameters } } };
}

/** Events with neighbours of a kind joined: what a client has in the end, whatever the pieces were. */
export function joined(events: readonly ChatEvent[]): ChatEvent[] {
  const out: ChatEvent[] = [];
  for (const event of events) {
    const last = out.at(-1);
    if (last !== undefined && 'text' in last && 'text' in event && last.type === event.type) {
      out[out.length - 1] = { ...last, text: last.text + event.text };
    } else {
      out.push(event);
    }
  }
  return out;
}

/** The same tokenizer with another chat template. */
export function withTemplate(tokenizer: Tokenizer, chatTemplate: string | null): Tokenizer {
  return new Proxy(tokenizer, {
    get(target, key) {
      if (key === 'chatTemplate') return chatTemplate;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
