"""Facts about inference: quantisation, the KV cache, batching, speed, sampling."""

from .corpus_keys import Fact

ENGINE = (
    Fact("int4", (
        "int4 weights store each weight in 4 bits instead of 16. {A group of weights, often 128, shares one scale and zero point|Each group of 128 or so weights shares a scale}. The model needs about a quarter of the memory and decodes faster, and it loses a little accuracy.",
        "With int4 weights a model takes about a quarter of the memory of 16 bits. {Decoding gets faster too, because fewer bytes are read per token|Fewer bytes are read per token, so decoding is faster}. The cost is a small loss of accuracy."),
        ("4-bit weights: a quarter of the memory, faster decoding, a little less accurate.",),
        ("int4", "int4 weights", "{4|four}{-| }bit weights", "{4|four}{-| }bit quantization", "int4 quantisation", "INT4"), (),
        ("what {does|do} int4 {cost|weights cost}", "why {would i|should i|do people} use int4{ weights|}", "is int4 {good|bad|worse|less accurate}",
         "how much memory does int4 save")),
    Fact("w4a16", (
        "W4A16 means weights in 4 bits and activations in 16 bits. The weights are {unpacked|turned back} to 16 bits inside the matrix product, so memory and reading shrink while the arithmetic stays in 16 bits.",
        "In W4A16, W4 says that weights have 4 bits and A16 says that activations have 16 bits. It saves memory and makes decoding faster."),
        ("Weights in 4 bits, activations in 16 bits.",),
        ("W4A16", "w4a16", "{4|four}-bit weights with 16-bit activations"), (),
        ("what does the W in W4A16 {mean|stand for}", "what does A16 mean", "what does W4 mean")),
    Fact("quantisation", (
        "Quantisation stores numbers in fewer bits. {Weights go from 16 bits to 8 or 4|A model's weights can go from 16 bits to 4}, and the KV cache can go to 8 or 4 bits. You save memory and time, and you lose a little accuracy.",
        "Quantisation means {fewer bits per number|writing numbers with fewer bits}:\n\n| format | memory | cost |\n|---|---|---|\n| 16 bit | 100 % | none |\n| 8 bit | about 50 % | very small |\n| 4 bit | about 25 % | small but real |"),
        ("It stores numbers in fewer bits: less memory, more speed, a little less accuracy.",),
        ("quanti{s|z}ation", "quanti{s|z}ing a model", "a quanti{s|z}ed model", "quant"), ("quanti{s|z}e a model", "make a model smaller"),
        ("why {do we|would i|should i|do people} quanti{s|z}e{ a model|}", "what does quanti{s|z}ation cost", "does quanti{s|z}ation hurt {quality|accuracy}",
         "which quanti{s|z}ation is best", "are you quanti{s|z}ed", "what happens when you quanti{s|z}e a model")),
    Fact("kvint8", (
        "With an int8 KV cache, keys and values are stored in 8 bits instead of 16. {About twice as many tokens fit in the same memory|The same memory holds about twice the context}, and the loss of accuracy is {very small|hard to notice}.",),
        ("It holds about twice as many tokens, at almost no loss.",),
        ("int8 kv{ cache|}", "the int8 cache", "{8|eight}-bit kv{ cache|}", "kv int8", "an int8 KV cache", "kv8"), (),
        ("what does int8 kv cost", "why {use|would i use} int8 kv")),
    Fact("kvint4", (
        "With an int4 KV cache, keys and values are stored in 4 bits. About four times as many tokens fit as with 16 bits, but the {answers can get worse|loss of accuracy can be seen}, most of all in long contexts. Try int8 first.",),
        ("It holds about four times the tokens, but it costs accuracy.",),
        ("int4 kv{ cache|}", "the int4 cache", "{4|four}-bit kv{ cache|}", "kv int4", "an int4 KV cache", "kv4"), (),
        ("what does int4 kv cost", "is int4 kv {good|bad|safe}", "should i use int4 or int8 kv")),
    Fact("awq", (
        "AWQ is a way to choose 4-bit weights. It looks at activations on sample text to find the channels that matter most, and scales them so that rounding hurts less. {The result is a W4A16 model|It needs no training}.",
        "AWQ stands for activation-aware weight quantisation. It protects the weights that matter most when it rounds to 4 bits."),
        ("Activation-aware weight quantisation: it protects the weights that matter most.",),
        ("AWQ", "awq", "activation{-| }aware {weight |}quanti{s|z}ation"), (), ("what does awq stand for", "how does awq choose the scales")),
    Fact("group_size", (
        "The group size says how many weights share one scale and zero point, {usually|often} 128. Smaller groups are more accurate and need {a bit|slightly} more memory.",),
        ("How many weights share one scale, usually 128.",),
        ("{the |a |}group size", "{the |}quantization group", "g128", "group size 128"), (), ("what group size should i {use|choose}", "why 128 weights per group")),
    Fact("kv_cache", (
        "The KV cache keeps the keys and values of all tokens so far, so that {the model does not compute them again|nothing is computed twice} for each new token. It grows by a fixed amount with every token.",
        "For every token the model has read, the KV cache holds its keys and values in every layer. {Each new token looks at them|A new token only reads them}, instead of computing everything again. In lmtop it is split into blocks of 64 tokens."),
        ("It remembers the keys and values of all tokens so far, so nothing is computed twice.",),
        ("{the |a |}kv{ |-}cache", "{the |}KV cache", "the {KV|kv} cache of a {transformer|model|decoder|language model}", "{the |}key{-| |/}value cache", "{a |}kv", "KV"), (),
        ("what {is stored|does lmtop store|is} in the kv cache", "why {do we|does lmtop|do models} {need|have} a {kv |}cache", "what is the K and V in kv cache",
         "what does the kv bar {show|mean}")),
    Fact("kv_grows", (
        "{The KV cache grows because every|Every} token adds its keys and values in every layer, so the cache grows with the length of the context. {Long chats need more memory|Twice the context takes twice the cache}.",),
        ("Every token adds its own keys and values.",), (), (),
        ("why does the {kv |}cache {grow|get bigger|get larger|fill up}", "why does {a |}long {chat|context|conversation}{s|} {need|use|take} more memory",
         "why {does memory|does the memory} {grow|go up} with {the |}context", "does the {kv |}cache grow", "how big {is|does} the {kv |}cache{ get|}",
         "why is the kv cache {so big|full|filling up}", "how does the cache {grow|size depend on the context}")),
    Fact("blocks", (
        "lmtop splits the KV cache into blocks of 64 tokens. A session takes blocks as it grows and gives them back when it ends, so {little memory is wasted|no big piece must be reserved}.",),
        ("A block holds the keys and values of 64 tokens.",),
        ("{a |the |}{kv |}block{s|}", "{a |}cache block", "KV blocks"), (), ("how big is a {kv |}block", "how many tokens {are in|fit in|does} a block{ hold|}",
         "what is the block size", "why blocks of 64 tokens")),
    Fact("paged", (
        "Paged KV means that a session's cache {lies in small blocks anywhere in memory|is made of small blocks}, with a table that says where each one is. It is {like|the same idea as} pages of memory in an operating system.",),
        ("The cache lies in small blocks, found through a block table.",),
        ("paged {kv|attention|cache|memory}", "{the |a |}paged kv cache", "{the |a |}block table"), (), ("why is the {kv |}cache paged",)),
    Fact("prefix_cache", (
        "The prefix cache keeps blocks of text that was already read. {When another session begins with the same text|If two sessions start with the same system prompt}, they share these blocks and the model need not read them again.",),
        ("Sessions that begin with the same text share the blocks of it.",),
        ("{the |a |}prefix cache", "prefix caching", "prefix {hits|hit|reuse|sharing}", "{a |the |}shared prefix", "cached tokens"), (),
        ("{do|can} sessions share {memory|blocks|the cache}", "what does prefix hit mean", "why was the second answer faster to start")),
    Fact("block_map", (
        "The block map shows the KV cache, one cell for one or more blocks:\n\n- upper case letter: owned by that session\n- lower case letter: shared prefix\n- `▒` cached, can be reused or dropped\n- `·` free\n\n`/kv` changes the zoom.",
        "Each cell of the map is a piece of the KV cache. A capital letter and its colour name the session that owns it, a small letter is a shared prefix, `▒` is cached and `·` is free."),
        ("Capital letter: owner session; small letter: shared; `▒` cached; `·` free.",),
        ("{the |}{kv |}block map", "the kv map", "{the |}map of blocks", "{the |}letters {in|on} the map", "{the |}{colours|colors} {in|on|of} the {block |kv |}map"), ("read the {block |kv |}map",),
        ("what do the {{coloured |colored |grey |little |}{squares|boxes|cells} on the right|letters|{colours|colors}|cells|dots|symbols} {mean|in the map mean|on the map mean|of the block map mean}", "what does {the|an} A mean in the map",
         "what are the grey cells", "what do {small|lower case|lowercase} letters mean", "what do {capital|upper case|uppercase} letters mean")),
    Fact("zoom", (
        "Type `/kv`, or press `ctrl+g` and then `z`, to change the zoom of the block map. It has three: {the blocks in use by session, the whole pool, and the physical order|used, pool and physical order}.",),
        ("`/kv` changes the zoom of the block map.",), ("{the |}three zooms", "{the |}zoom"), ("zoom the {block |kv |}map", "zoom {in|out}", "see the whole {pool|cache}"),
        ("what does z do in the menu", "what is physical order", "what does used mean in the map")),
    Fact("batching", (
        "With continuous batching, {several requests run in the same step|the engine computes one step for several requests together}. A new request joins at any step and a finished one leaves at once, so nobody waits for the slowest.",),
        ("Requests join and leave the running batch at every step.",),
        ("continuous batching", "{the |}batching", "{the |a |}batch", "{the |}batch slots", "{in-flight|inflight|dynamic} batching"), (),
        ("can {you|lmtop} {answer|run|handle} {several|many|two|multiple} {requests|chats|sessions|questions} at {once|the same time}",
         "how {can|do} several sessions {run|generate} at once", "what does slots 2/8 mean", "what are slots", "what is a slot")),
    Fact("queue", (
        "When all slots are busy or the KV cache has no room, a request waits in the queue. {The gauges say what it waits for|lmtop shows the reason next to it}.",),
        ("Requests that do not fit yet wait there, with the reason shown.",),
        ("{the |}queue", "{the |a |}waiting request"), (), ("why {is my request|is my session|do i have to} wait{ing|}", "what does queued mean", "why {am i|is it} queued")),
    Fact("prefill", (
        "Prefill is the first phase: the model reads your whole prompt at once. {Then decode begins|After it comes decode}, which writes the answer one token at a time.",
        "In prefill the model reads all tokens of the prompt together, so it is limited by computing speed. The time to first token is mostly prefill."),
        ("Prefill reads the prompt, all tokens at once.",),
        ("prefill", "the prefill phase", "prefilling", "prompt processing", "chunked prefill"), (), ("what is the first phase", "why does a long prompt take time", "how is the prompt read")),
    Fact("decode", (
        "Decode is the phase that writes the answer, one token per step. Every step reads all the weights, so it is limited by memory bandwidth.",),
        ("Decode writes the answer, one token per step.",),
        ("decode", "the decode phase", "decoding"), (), ("why does the answer come {word by word|token by token|slowly|piece by piece}", "why is decoding limited by memory")),
    Fact("prefill_decode", (
        "Prefill reads the prompt, many tokens at once, and is limited by computing. Decode writes the answer, one token per step, and is limited by memory bandwidth.",
        "There are two phases:\n\n1. **Prefill** reads your prompt, all tokens together.\n2. **Decode** writes the answer, one token at a time."),
        ("Prefill reads the prompt, decode writes the answer.",),
        ("{the difference between |}prefill {and|vs|versus|or} decode", "prefill and decoding", "the two phases"), (),
        ("how is prefill different from decode", "how does generation work", "what are the phases of generation", "is prefill faster than decode")),
    Fact("tps", (
        "Tokens per second, t/s, says how fast text is made. {Decode speed is the speed of writing, prefill speed that of reading|lmtop shows it for decode and for prefill}. A token is about three quarters of an English word.",),
        ("How many tokens the model reads or writes in a second.",),
        ("tokens per second", "t/s", "tok/s", "tokens/s", "the decode speed", "tps", "{the |}throughput"), (),
        ("how fast are you", "how fast is {this|it}", "what is your speed", "how many tokens per second {do you make|is this|do you do}", "what does t/s mean", "are you fast", "why are you {so fast|slow}")),
    Fact("ttft", (
        "The time to first token is how long you wait until the answer starts. {It is mostly prefill|It grows with the length of the prompt}, and a prefix hit makes it shorter.",),
        ("How long it takes until the answer starts.",),
        ("ttft", "time to first token", "TTFT", "the time to first token", "latency"), (), ("why does it take {long|so long} to start", "what does ttft mean")),
    Fact("token", (
        "A token is a piece of text that a model reads or writes in one go: a word, a part of a word, or a sign. {I know 4096 of them|My own vocabulary has 4096 of them}.",),
        ("A piece of text: a word or a part of one.",),
        ("{a |}token", "tokens", "{the |a |}tokeni{s|z}er", "tokeni{s|z}ation"), (), ("how long is a token", "how is text split", "is a token a word")),
    Fact("context", (
        "The context is all the text the model can see: the system prompt, your messages and my answers. {Mine holds 2048 tokens|My limit is 2048 tokens}. The meter below the prompt shows how full it is.",),
        ("All text the model can see. Mine is 2048 tokens long.",),
        ("{the |}context", "{the |your |a |}context {length|window|size}", "{the |}context meter", "ctx"), (),
        ("how {long|big|large} is your context", "how much text can you {remember|see|read}", "how many tokens can you {remember|see|read}", "what is the bar {below|under} the prompt",
         "what happens when the context is full", "how much can you remember")),
    Fact("temperature", (
        "The temperature sets how random the answer is. At 0 the most likely token is always taken; {around 0.7 is a common value|0.7 to 1 gives more variety}; high values get wild. Set it with `F8` or `/set temp=0.7`.",),
        ("Higher is more random, 0 is always the most likely token.",),
        ("{the |}temperature", "temp", "sampling temperature", "the temperature setting"), ("{set|change|raise|lower} the temperature",),
        ("which temperature should i use", "what temperature is good", "what does temperature 0 mean", "what does temperature do", "why are your answers {different every time|random}")),
    Fact("top_k", (
        "Top-k keeps only the k most likely tokens and draws the next one from them. {A small k is safer, a large k more varied|With k = 1 it is greedy}.",),
        ("Only the k most likely tokens may be drawn.",), ("top{-| |_}k", "Top-k", "top k sampling"), (), ("what does top{-| }k do",)),
    Fact("top_p", (
        "Top-p keeps the smallest set of tokens whose probabilities add up to p, for example 0.9, and draws from them. {It cuts off the unlikely tail|Unlikely tokens are left out}.",),
        ("Tokens are kept until their probabilities add up to p.",), ("top{-| |_}p", "Top-p", "nucleus sampling", "top p sampling"), (), ("what does top{-| }p do",)),
    Fact("min_p", (
        "Min-p drops every token whose probability is less than min-p times that of the most likely token. {With 0.1, a token must be at least a tenth as likely as the best one|It adapts to how sure the model is}.",),
        ("Tokens far less likely than the best one are dropped.",), ("min{-| |_}p", "Min-p"), (), ("what does min{-| }p do",)),
    Fact("seed", (
        "The seed starts the random numbers of sampling. With the same seed, prompt and settings you get the same answer again. {Set it in the sampling panel, `F8`|`/set seed=7` sets it, and `F8` shows it}.",),
        ("Same seed, same prompt, same settings: same answer.",), ("{the |a |}{random |}seed", "sampling seed"), ("{set|fix|change} the seed", "get the same answer {again|every time|twice}"),
        ("what does the seed do", "why would i set a seed")),
    Fact("sampling", (
        "Sampling is how the next token is drawn from the probabilities. `F8` opens the panel:\n\n- **temperature**: how random\n- **top-k**, **top-p**, **min-p**: which tokens may be drawn\n- **seed**: repeat the same draw",),
        ("It is how the next token is drawn; `F8` shows the settings.",), ("sampling", "{the |}sampling {settings|parameters|options}"), (),
        ("how {is|do you choose|do you pick} the next {token|word}{ chosen|}", "what sampling {settings|options|parameters} are there", "difference between top-k and top-p")),
    Fact("set_sampling", (
        "Open the sampling panel with `F8`. {There you set temperature, top-p, top-k, min-p and the seed|It has temperature, top-p, top-k, min-p and the seed}. `/set temp=0.7` {works too|sets a value from the prompt}.",),
        ("Press `F8`, or use `/set`.",), (), ("{set|change|adjust} {top-k|top-p|min-p|top p|top k|min p|topp|topk|the sampling|the parameters}",),
        ("where do i {set|change|find} {top-k|top-p|min-p|the temperature|the sampling settings}",)),
    Fact("greedy", (
        "Greedy means that the most likely token is taken every time, as with temperature 0. The answer is then always the same.",),
        ("The most likely token is taken every time.",), ("greedy{ decoding| sampling|}",), (), ("what does greedy mean",)),
    Fact("penalty", (
        "The repetition penalty makes tokens that were already used less likely, so that the model repeats itself less. 1.0 switches it off.",),
        ("It makes used tokens less likely; 1.0 is off.",), ("{the |}repetition penalty", "repeat penalty"), (), ("how do i stop {the model|you} from repeating{ itself| yourself|}",)),
    Fact("weights", (
        "The weights are the numbers a model has learned. {Mine are about 7.5 million|I have about 7.5 million of them}; a real model has billions. Every token that is written needs all of them once.",),
        ("The numbers a model has learned.",), ("weights", "model weights", "the weights"), (), ("what are weights",)),
    Fact("preempt", (
        "When the KV cache is full, the engine may take the blocks of one session and compute them again later. Nothing is lost, it only takes {longer|some time}.",),
        ("A session gives up its blocks and is computed again later.",), ("preemption", "a preempted session"), (),
        ("what happens when the {kv |}cache is full", "what if memory runs out", "what happens if the kv cache runs out")),
    Fact("vram", (
        "VRAM is the memory of the graphics card. The bar splits it into weights, KV used, KV rest, workspace and others. {Without a GPU it shows the RAM of the machine|On a machine without GPU you see its RAM}.",),
        ("The memory of the graphics card.",), ("vram", "VRAM", "{the |}{vram|memory|gpu memory} bar", "gpu memory"), (),
        ("what {does|do} the {vram|memory} bar {show|mean}", "how much vram do i need", "what is using my {vram|gpu memory}", "what do the parts of the memory bar mean", "what is workspace")),
    Fact("attention", (
        "Attention is the part of a layer in which a token looks at the tokens before it. Each token makes a query, a key and a value; the query is compared with all keys, and the values are mixed by how well they match.",),
        ("Each token looks at the ones before it and mixes what fits.",), ("attention", "self{-| }attention", "the attention mechanism", "an attention head", "attention heads"), (), ("what are {queries keys and values|q k and v}", "why is attention expensive")),
    Fact("gqa", (
        "Grouped-query attention, GQA, lets several query heads share one pair of key and value heads. The KV cache gets smaller by that factor. I have 8 query heads and 2 key and value heads.",),
        ("Several query heads share keys and values, so the cache is smaller.",), ("GQA", "gqa", "grouped{-| }query attention"), (), ("what does gqa save", "why do models use gqa")),
    Fact("rope", (
        "RoPE, rotary position embedding, turns the queries and keys by an angle that grows with the position. {So attention sees how far apart two tokens are|That tells the model where a token stands}.",),
        ("It turns queries and keys by an angle that depends on the position.",), ("RoPE", "rope", "rotary {positions|embeddings|position embedding|embedding}"), (), ("how does the model know the position of a token",)),
    Fact("llm", (
        "A language model predicts the next token from the text so far. {Repeating this writes an answer|It writes an answer by doing that again and again}. A large one has billions of parameters, I have 7.5 million.",),
        ("It predicts the next token, again and again.",), ("{a |}language model", "an llm", "LLM", "llms", "a large language model", "a model"), (), ("how does a language model work", "how do you work", "what does llm mean", "how do you write text", "how do you {make|generate|find} {your |an |}answer{s|}", "how do you know what to say")),
    Fact("transformer", (
        "A transformer is a stack of layers, each with attention and a small feed-forward network. Text goes in as tokens, and out come probabilities for the next one. I am one, with 7 layers.",),
        ("A stack of layers with attention and feed-forward parts.",), ("a transformer", "transformers", "the transformer architecture", "a decoder"), (), ("are you a transformer model", "what is inside a language model", "what is a layer")),
    Fact("sizes", (
        "7B means seven billion parameters. In 16 bits each takes two bytes, so such a model needs about 14 GB for its weights, and the KV cache comes on top. I have only 7.5 million.",),
        ("Seven billion parameters, about 14 GB in 16 bits.",), ("7b", "8b", "a 7b model", "parameters", "model size"), (), ("what does 7b mean", "what does the b in 7b mean", "how much memory does a 7b model need", "what is a parameter", "how many bytes does a parameter take")),
    Fact("dtype", (
        "The dtype is the number format of the weights: float32 takes four bytes per number, float16 and bfloat16 take two. bfloat16 has the range of float32 with less precision. `--dtype` or the load dialog chooses it.",),
        ("The number format: float32, float16 or bfloat16.",), ("dtype", "--dtype", "float16", "bfloat16", "fp16", "bf16", "float32", "half precision"), ("change the dtype", "choose float16"), ("what is the difference between float16 and bfloat16", "which dtype should i use")),
    Fact("logits", (
        "Logits are the raw scores that a model gives to every token of its vocabulary. Softmax turns them into probabilities, and sampling draws the next token.",),
        ("The raw scores of all tokens.",), ("logits", "a logit", "softmax", "logprobs", "token probabilities"), (), ("how do scores become probabilities",)),
    Fact("embedding", (
        "An embedding is the list of numbers that stands for a token inside the model. Mine have 256 numbers each.",), ("The numbers that stand for a token.",), ("an embedding", "embeddings", "the embedding layer", "a hidden state"), (), ("how are tokens stored inside you",)),
    Fact("hallucination", (
        "A model hallucinates when it makes up something that sounds right but is not. It only predicts likely text and does not check it. I can do that too, so do not rely on me.",), ("It makes up things that sound right but are wrong.",), ("{a |}hallucination", "hallucinating", "hallucinations"), (), ("do you hallucinate", "why do {models|you} make things up", "do you make things up")),
    Fact("chat_template", (
        "A chat template turns messages into the text that the model was trained on, with marks for who speaks. Each model brings its own. Mine is called ChatML.",), ("It turns messages into the model's own format.",), ("{a |the |}chat template", "ChatML", "the prompt format", "special tokens"), (), ("what are the marks around messages", "which prompt format do you use", "what is an eos token", "how does the model know when to stop")),
    Fact("max_tokens", (
        "An answer ends when the model says so, or after the most tokens allowed. `/set max=200` limits it to 200 tokens, `F8` shows it too.",), ("`/set max=200` limits the answer.",), ("max tokens", "max_new_tokens", "--max-new-tokens", "the maximum length", "stop strings"), ("{limit|shorten} {your |the |}answers", "make {your |the |}answers shorter"), ("why did the answer stop early", "how long can an answer be")),
    Fact("presets", (
        "The sampling panel, `F8`, has presets: precise, balanced, wild and greedy. They set temperature and top-p together.",), ("Precise, balanced, wild and greedy, in `F8`.",), ("{the |}presets", "the wild preset", "the precise preset", "the balanced preset"), ("choose a preset",), ("which presets are there",)),
)  # fmt: skip
