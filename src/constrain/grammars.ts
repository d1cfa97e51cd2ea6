/** Compiled grammars by schema text, the least recently used out first; and matchers that walk through them. */
import type * as XGrammar from '@mlc-ai/web-xgrammar';
import { perigeeError } from '../errors.ts';
import type { TokenTable } from './masks.ts';
import { readSchema, type SchemaReading } from './schema.ts';
import { StringLimits } from './string-limits.ts';
import type { GrammarLibrary } from './xgrammar.ts';

/** A compiled grammar takes from some KB to tens of MB. */
const mostGrammars = 32;
const mostReadings = 256;
const mostSchemaCharacters = 262_144;

export interface Matcher {
  mask(): Promise<Int32Array>;
  accept(token: number): void;
  close(): void;
}

export class Grammars {
  readonly #library: GrammarLibrary;
  readonly #tokens: TokenTable;
  readonly #readings = new Map<string, SchemaReading>();
  readonly #compiled = new Map<string, XGrammar.CompiledGrammar>();

  constructor(library: GrammarLibrary, tokens: TokenTable) {
    this.#library = library;
    this.#tokens = tokens;
  }

  /** Throws what is wrong with the schema, which errors call `where`; compiles nothing. Returns the keywords it leaves out. */
  check(schema: unknown, strict: boolean, where?: string): readonly string[] {
    return this.#read(schema, strict, where).unenforced;
  }

  #read(schema: unknown, strict: boolean, where?: string): SchemaReading {
    const text = JSON.stringify(schema);
    const key = `${strict} ${text}`;
    const known = this.#readings.get(key);
    if (known !== undefined) return known;
    if (text.length > mostSchemaCharacters) {
      throw perigeeError('SCHEMA_TOO_COSTLY', { why: `it has more than ${mostSchemaCharacters} characters` });
    }
    return keep(this.#readings, key, readSchema(schema, strict, where), mostReadings);
  }

  async #compiledOf(grammar: string): Promise<XGrammar.CompiledGrammar> {
    const compiled = this.#compiled.get(grammar) ?? (await this.#library.compile(grammar));
    this.#compiled.delete(grammar);
    keep(this.#compiled, grammar, compiled, mostGrammars, (old) => old.dispose());
    return compiled;
  }

  /** The same, and compiles it for later. */
  async compile(schema: unknown, strict: boolean, where?: string): Promise<readonly string[]> {
    const { grammar, unenforced } = this.#read(schema, strict, where);
    await this.#compiledOf(grammar);
    return unenforced;
  }

  async matcher(schema: unknown, strict: boolean): Promise<Matcher> {
    const compiled = await this.#compiledOf(this.#read(schema, strict).grammar);
    const matcher = await this.#library.matcher(compiled);
    const limits = new StringLimits(schema, strict, this.#tokens);
    return {
      mask: async () => limits.applied(await matcher.getNextTokenBitmask()),
      accept: (token) => {
        if (!matcher.acceptToken(token)) throw new Error(`token ${token} was not allowed`);
        limits.accept(token);
      },
      close: () => matcher.dispose(),
    };
  }
}

/** Adds an entry as the newest; the oldest beyond `most` goes. */
function keep<Value>(
  map: Map<string, Value>,
  key: string,
  value: Value,
  most: number,
  drop?: (old: Value) => void,
): Value {
  map.set(key, value);
  if (map.size > most) {
    const [oldest, old] = map.entries().next().value!;
    map.delete(oldest);
    drop?.(old);
  }
  return value;
}
