/**
 * The grammar library, XGrammar compiled to WebAssembly: from a grammar to the mask of allowed tokens. Only a worker may load
 * it, since it needs global names, cannot be interrupted, and ends its instance on a fatal error.
 *
 * Its own JSON Schema conversion is not used: it ignores keywords, anchors patterns it should not and lets additional
 * properties repeat declared ones. schema.ts writes the grammars.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type * as XGrammar from '@mlc-ai/web-xgrammar';
import { spellBytes } from '../gguf/byte-symbols.ts';
import type { Tokenizer } from '../tokenizer/types.ts';

/** Most memory of the library: Kimi K2's vocabulary takes 60 MB, a large compiled grammar tens. */
const memoryBytes = 1 << 30;

export class GrammarLibrary {
  readonly #library: typeof XGrammar;
  readonly #compiler: XGrammar.GrammarCompiler;

  private constructor(library: typeof XGrammar, compiler: XGrammar.GrammarCompiler) {
    this.#library = library;
    this.#compiler = compiler;
  }

  /** Reads the vocabulary. Control tokens are no text to any grammar; those that end a turn end it. */
  static async load(tokenizer: Tokenizer): Promise<GrammarLibrary> {
    const library = await importLibrary();
    const vocabulary = Array.from({ length: tokenizer.vocabularySize }, (_, id) =>
      tokenizer.isSpecial(id) ? '' : spellBytes(tokenizer.bytes(id)),
    );
    const info = await library.TokenizerInfo.createTokenizerInfo(vocabulary, 'byte_level', false, vocabulary.length, [
      ...tokenizer.stopTokens,
    ]);
    return new GrammarLibrary(library, await library.GrammarCompiler.createGrammarCompiler(info, false));
  }

  /** `grammar` is EBNF in the library's notation, with the rule `root`. */
  async compile(grammar: string): Promise<XGrammar.CompiledGrammar> {
    // Given the text itself, the library would keep what it parsed of it for ever.
    const parsed = await this.#library.Grammar.fromEBNF(grammar);
    const compiled = await this.#compiler.compileGrammar(parsed);
    parsed.dispose();
    return compiled;
  }

  async matcher(grammar: XGrammar.CompiledGrammar): Promise<XGrammar.GrammarMatcher> {
    return this.#library.GrammarMatcher.createGrammarMatcher(grammar);
  }
}

/**
 * The package calls itself an ES module but is a script for CommonJS or a page. Imported as it is, with the names of CommonJS
 * as globals, it leaves its exports in a global.
 */
async function importLibrary(): Promise<typeof XGrammar> {
  const name = '@mlc-ai/web-xgrammar';
  const file = fileURLToPath(import.meta.resolve(name));
  Object.assign(globalThis, { require: createRequire(file), __filename: file, __dirname: '/' });
  const grow = WebAssembly.Memory.prototype.grow;
  WebAssembly.Memory.prototype.grow = function (pages: number) {
    if (this.buffer.byteLength + pages * 65536 > memoryBytes) throw new RangeError('the grammar needs too much memory');
    return grow.call(this, pages);
  };
  await import(name);
  return (globalThis as unknown as { xgrammar: typeof XGrammar }).xgrammar;
}
