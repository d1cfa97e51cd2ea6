/** Text to token ids and back. Ids below the first special are byte pairs; specials are control tokens with names. */
export interface Tokenizer {
  readonly vocabularySize: number;
  /** Name to id of every control token that has a name, "<|im_end|>" etc. */
  readonly specials: ReadonlyMap<string, number>;
  /** Ids that end an assistant's turn: <|im_end|>, [EOS], [EOT], and the file's eos. */
  readonly stopTokens: readonly number[];
  readonly bosToken: number | null;
  readonly eosToken: number | null;
  readonly padToken: number | null;
  /** The checkpoint's Jinja chat template, if it brings one. */
  readonly chatTemplate: string | null;
  /** Token ids of `text`. With `specials` the names of control tokens in it are read as such; without, as ordinary text. */
  encode(text: string, options?: { specials?: boolean }): number[];
  /** Text of the ids; incomplete UTF-8 becomes U+FFFD; control tokens print their names. */
  decode(ids: Iterable<number>): string;
  /** The bytes one id stands for (a control token's name as UTF-8). */
  bytes(id: number): Uint8Array;
  isSpecial(id: number): boolean;
  streamDecoder(): StreamDecoder;
}

/** Turns ids into text piece by piece, holding back bytes that do not yet make a whole character. */
export interface StreamDecoder {
  push(id: number): string;
  /** What is left, with U+FFFD for bytes that never became a character. */
  end(): string;
}
