import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { openGguf } from '../gguf/open.ts';
import { tokenizerFromFolder } from './folder.ts';
import { tokenizerFromGguf } from './gguf.ts';
import type { Tokenizer } from './types.ts';

/** The tokenizer at `path`: a folder with tiktoken.model, else whatever model openGguf finds there. */
export async function openTokenizer(path: string): Promise<Tokenizer> {
  if (existsSync(join(path, 'tiktoken.model'))) return tokenizerFromFolder(path);
  return tokenizerFromGguf(await openGguf(path));
}
